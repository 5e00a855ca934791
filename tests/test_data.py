"""The data room: glyphs' bits, splits and samplers as properties, files of every kind, every bad input, archives and workers."""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, photos, picture, tarred, zipped
from PIL import Image
from scipy.io import savemat

from mdprop import data as room
from mdprop.archives import PUBLISHED, ChecksumError, DataError, FileSource, MissingDataError, Published
from mdprop.data import (
    GLYPHS_SHA256,
    ArrayError,
    ClassBatches,
    Decoder,
    EmptyClassError,
    ImageSet,
    NotAnImageError,
    OneImageClassError,
    SplitError,
    UnreadableImageError,
    cars196,
    cub200,
    decode_image,
    glyphs,
    image_folder,
    inshop,
    omniglot,
    real_data_folder,
    sop,
    spread_evenly,
)
from mdprop.grid import Grid, open_sets
from mdprop.retrieval import retrieval_metrics


def made(counts, **options):
    "A set of blank images with so many per class."
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImageSet.from_arrays(np.zeros((len(labels), 2, 2), np.uint8), labels, **options)


# ---------------------------------------------------------------- glyphs

def test_glyphs_are_these_bits():
    assert hashlib.sha256(glyphs().images.numpy().tobytes()).hexdigest() == GLYPHS_SHA256

def test_glyphs_do_not_depend_on_the_processor_features():
    code = ("import hashlib; from mdprop.data import glyphs; print(hashlib.sha256(glyphs(20).images.numpy().tobytes()).hexdigest())")
    disabled = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONWARNINGS": "ignore"}
    plain = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=120)
    assert plain.stdout.strip() == hashlib.sha256(glyphs(20).images.numpy().tobytes()).hexdigest()

def test_glyphs_prefix_seed_and_size():
    whole, few = glyphs(20, 6), glyphs(7, 4)
    assert torch.equal(few.images.reshape(7, 4, 1, 32, 32), whole.images.reshape(20, 6, 1, 32, 32)[:7, :4])
    other = glyphs(20, 6, seed=1)
    assert not torch.equal(other.images, whole.images) and other.fingerprint != whole.fingerprint
    assert glyphs(5, 2, size=48).shape == (1, 48, 48)
    assert len({image.numpy().tobytes() for image in whole.images}) == len(whole)
    with pytest.raises(ArrayError, match="must be positive"): glyphs(0)

def test_glyphs_look_as_promised():
    whole = glyphs()
    assert (len(whole), whole.shape, len(whole.class_names)) == (4000, (1, 32, 32), 200)
    assert "SYNTHETIC" in whole.describe() and "SYNTHETIC" in (glyphs.__doc__ or "")
    pixels = whole.images.float()
    assert pixels.median() > 200 and (pixels.amin((1, 2, 3)) < 128).all()  # dark ink on light paper, in every image
    assert len(whole.images.unique()) > 200  # antialiased
    train, valid, test = whole.split_classes(valid=0.2)
    families = [{name.split("/")[0] for name in part.class_names} for part in (train, valid, test)]
    assert [len(f) for f in families] == [16, 4, 20] and not set.union(*families[:2]) & families[2] and not families[0] & families[1]


# ---------------------------------------------------------------- the set

def test_items_batches_and_subsets():
    pixels = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)
    s = ImageSet.from_arrays(pixels, [9, 9, -3, 40, 40], ["minus", "nine", "forty"], list("abcde"))
    image, label = s[-1]
    assert image.dtype == torch.float32 and image.max() == 19 / 255 and label == 2 and isinstance(label, int)
    assert s.labels.tolist() == [1, 1, 0, 2, 2] and s.counts.tolist() == [1, 2, 2]
    x, y = s.batch(torch.tensor([4, 0]))
    assert x.shape == (2, 1, 2, 2) and y.tolist() == [2, 1]
    part = s.subset(np.array([False, True, False, True, True]))
    assert part.class_names == ["nine", "forty"] and part.labels.tolist() == [0, 1, 1] and part.keys == ["b", "d", "e"]
    assert torch.equal(part.subset([2, 0]).batch([0])[0], s.batch([4])[0])
    assert s.batch([])[0].shape == (0, 1, 2, 2)
    assert [label for _, label in s] == s.labels.tolist()  # iteration ends
    assert s.drop_small_classes().class_names == ["nine", "forty"]
    assert part.images is s.images  # nothing is copied
    for wrong in ([5], [-6]):
        with pytest.raises(IndexError, match="outside of a set of 5"): s.batch(wrong)
    for wrong in ([0.5], [[0, 1]], [True, False], ["a"], slice(2)):
        with pytest.raises(ArrayError, match="indices must be"): s.batch(wrong)
    with pytest.raises(EmptyClassError): s.subset([])

def test_float_images_are_rounded_and_layouts_checked():
    x = torch.rand(3, 3, 4, 4)
    s = ImageSet.from_arrays(x, [0, 0, 1])
    assert (s.batch(range(3))[0] - x).abs().max() <= 0.5 / 255 + 1e-6
    for images, message in (
        (np.full((3, 4, 4), 200.0), "divide by 255"),
        (np.full((3, 4, 4), np.nan), "outside of"),
        (-torch.ones(3, 4, 4), "outside of"),
        (np.zeros((3, 4, 4, 3), np.uint8), "transpose"),
        (np.zeros((3, 4, 4), np.int32), "give uint8"),
        (np.zeros((3, 4)), r"give \(n, h, w\)"),
    ):
        with pytest.raises(ArrayError, match=message): ImageSet.from_arrays(images, [0, 0, 1])
    for images in ([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], np.array([None, None]), ["a.png", "b.png"]):
        with pytest.raises(ArrayError, match=r"cannot become one array.*image_folder"): ImageSet.from_arrays(images, [0, 1])

def test_labels_and_names_are_checked():
    x = np.zeros((3, 2, 2), np.uint8)
    for labels, message in (
        (["cat", "cat", "dog"], "numpy.unique"),
        (np.array(["a", "b", 3], object), "text"),
        ([0.0, 1.0, 2.0], "vector of integers"),
        ([[0], [1], [2]], "vector of integers"),
        ([0, 1], "equally many"),
    ):
        with pytest.raises(ArrayError, match=message): ImageSet.from_arrays(x, labels)
    with pytest.raises(ArrayError, match="2 class names for 3"): ImageSet.from_arrays(x, [0, 1, 2], ["a", "b"])
    with pytest.raises(ArrayError, match="twice"): ImageSet.from_arrays(x, [0, 1, 2], keys=["a", "a", "b"])
    one = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(EmptyClassError, match="'b' has no image"): ImageSet(one, [0], ["a", "b"], ["k"])
    with pytest.raises(ArrayError, match="one for each"): ImageSet(one, [1], ["a"], ["k"])
    with pytest.raises(ArrayError, match="'alternate' or 'official'"): ImageSet(one, [0], ["a"], ["k"], split="random")
    with pytest.raises(ArrayError, match="2 groups for 1 classes"): ImageSet(one, [0], ["a"], ["k"], groups=[0, 1])
    with pytest.raises(EmptyClassError, match="not one image"): ImageSet.from_arrays(np.zeros((0, 2, 2), np.uint8), np.zeros(0, int))

def test_statistics_and_thumbnails():
    x = np.random.RandomState(0).randint(0, 256, (300, 3, 8, 8)).astype(np.uint8)
    s = ImageSet.from_arrays(x, np.arange(300) // 10)
    mean, std = s.pixel_statistics()
    np.testing.assert_allclose(mean, (x / 255).mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std((0, 2, 3)), atol=1e-9)
    assert s.pixel_statistics(50) == s.pixel_statistics(50) != s.pixel_statistics(50, seed=1)
    assert np.array_equal(s.thumbnails(8), x.transpose(0, 2, 3, 1))
    grey = glyphs(2, 3)
    small = grey.thumbnails(16)
    assert small.shape == (6, 16, 16, 3) and small.dtype == np.uint8 and (small[..., 0] == small[..., 2]).all()
    assert abs(small.mean() - grey.images.float().mean()) < 2

def test_fingerprint_is_stable_and_sensitive():
    a = made([2, 3])
    assert a.fingerprint == made([2, 3]).fingerprint == a.subset(range(5)).fingerprint and len(a.fingerprint) == 16
    others = made([3, 2]), made([2, 3], class_names=["x", "y"]), a.subset([1, 0, 2, 3, 4])
    assert len({a.fingerprint, *(other.fingerprint for other in others)}) == 4


# ---------------------------------------------------------------- splits, as properties

def test_spread_evenly_counts_and_bounds():
    for total in range(1, 60):
        for count in range(total + 1):
            chosen = spread_evenly(count, total)
            assert len(chosen) == count and all(0 <= i < total for i in chosen)
            gaps = np.diff(chosen)
            assert count < 2 or gaps.max() - gaps.min() <= 1
    assert spread_evenly(121, 243) == list(range(1, 243, 2))

@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=4, max_size=30), test=st.floats(0.05, 0.95), valid=st.floats(0.05, 0.95),
       rule=st.sampled_from(["first", "alternate"]), grouped=st.booleans())
def test_splits_are_class_disjoint_and_complete(counts, test, valid, rule, grouped):
    base = made(counts)
    groups = [c // 2 for c in range(len(counts))] if grouped else None
    s = ImageSet(base.images, base.labels, base.class_names, base.keys, "made", rule, groups)
    train, held = s.split_classes(test)
    assert sorted(train.class_names + held.class_names) == sorted(s.class_names)
    assert sorted(train.keys + held.keys) == sorted(s.keys)
    for part in (train, held):
        assert part.labels.unique().tolist() == list(range(len(part.class_names)))
        assert [s.class_names[s.labels[s.keys.index(k)]] for k in part.keys] == [part.class_names[c] for c in part.labels.tolist()]
    assert not set(train.groups) & set(held.groups)
    if len(set(train.groups)) > 1:
        rest, kept, same = s.split_classes(test, valid)
        assert same.keys == held.keys and sorted(rest.keys + kept.keys) == sorted(train.keys)
        assert not set(rest.class_names) & set(kept.class_names) and not set(rest.groups) & set(kept.groups)
    if rule == "first": assert max(map(s.class_names.index, train.class_names)) < min(map(s.class_names.index, held.class_names))

def test_halves_are_the_fields():
    s = made([1] * 7)
    assert s.split_classes()[0].class_names == ["0", "1", "2"]
    every = ImageSet(s.images, s.labels, s.class_names, s.keys, "e", "alternate")
    assert every.split_classes()[1].class_names == ["1", "3", "5"]
    rest, held = made([1] * 10).hold_out_classes(0.2)
    assert held.class_names == ["2", "7"] and (rest.name, held.name) == ("arrays-train", "arrays-valid")
    assert [p.name for p in made([1] * 10).split_classes(valid=0.2)] == ["arrays-train", "arrays-valid", "arrays-test"]

def test_impossible_splits():
    for share in (0, 1, -0.1, 1.5):
        with pytest.raises(SplitError, match="between 0 and 1"): made([2, 2]).split_classes(share)
    with pytest.raises(SplitError, match="one class cannot"): made([4]).split_classes()
    with pytest.raises(SplitError, match="one family of classes cannot"): glyphs(5, 2).split_classes()
    with pytest.raises(SplitError, match="one class cannot"): made([2, 2]).split_classes(valid=0.5)


# ---------------------------------------------------------------- class-balanced batches, as properties

@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(3, 9), min_size=2, max_size=12), per_class=st.integers(1, 3), data=st.data())
def test_batches_are_balanced_without_repeats(counts, per_class, data):
    s = made(counts)
    need = data.draw(st.integers(1, len(counts)))
    sampler = s.class_batches(need * per_class, per_class, seed=data.draw(st.integers(0, 99)), batches=data.draw(st.integers(1, 12)))
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    for batch in drawn:
        assert len(set(batch)) == len(batch) == need * per_class
        assert np.unique(s.labels[batch].numpy(), return_counts=True)[1].tolist() == [per_class] * need
    everything = np.concatenate(drawn)
    classes = np.bincount(s.labels[everything].numpy(), minlength=len(counts))
    assert classes.max() - classes.min() <= per_class  # no class comes more than once oftener than another
    for c in range(len(counts)):
        uses = np.bincount(everything, minlength=len(s))[s.labels.numpy() == c]
        assert uses.max() - uses.min() <= 1  # all images of a class come before one comes again

def test_batches_repeat_with_the_seed_and_differ_between_epochs():
    s = made([5] * 8)
    a, b = s.class_batches(8, 2, seed=3), s.class_batches(8, 2, seed=3)
    first, second = list(a), list(a)
    assert first == list(b) and first != second and second == list(b)
    b.set_epoch(1)
    assert second == list(b) and first != list(s.class_batches(8, 2, seed=4))
    made_by = [list(s.class_batches(8, 2, torch.Generator().manual_seed(5))) for _ in range(2)]
    assert made_by[0] == made_by[1]
    state = torch.random.get_rng_state()
    list(a)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's randomness is left alone
    assert len(made([5] * 8).class_batches(8, 2)) == 5 and len(made([2, 2]).class_batches(4, 2)) == 1

def test_small_classes_warn_and_single_images_are_refused():
    s = made([2, 5, 5])
    with pytest.warns(UserWarning, match=r"class '0' has 2 images, fewer than per_class=3"): sampler = s.class_batches(9, 3)
    for batch in sampler:
        uses = np.bincount(batch, minlength=len(s))
        assert sorted(uses[:2]) == [1, 2] and uses[2:].max() == 1
    lonely = made([4, 1, 3, 1])
    with pytest.raises(OneImageClassError, match=r"class '1' has one image.*2 such.*drop_small_classes"): lonely.class_batches(4, 2)
    assert len(list(lonely.class_batches(4, 1))) == 2
    assert list(lonely.drop_small_classes().class_batches(4, 2))

def test_impossible_batches():
    s = made([4, 4, 4])
    for size, each in ((7, 2), (0, 1), (4, 0), (2, 4)):
        with pytest.raises(SplitError, match="must be a multiple"): s.class_batches(size, each)
    with pytest.raises(SplitError, match=r"needs 32 classes.* has 3: use batch_size=6"): s.class_batches(64, 2)
    with pytest.raises(SplitError, match="batches=0"): s.class_batches(6, 2, batches=0)
    assert isinstance(s.class_batches(6, 2), ClassBatches)


# ---------------------------------------------------------------- decoding

def test_kinds_of_image_become_rgb_or_grey():
    rgb = picture()
    assert np.array_equal(np.asarray(decode_image(encoded(rgb))), np.asarray(rgb))
    for mode in ("L", "1", "P"):
        image = rgb.convert(mode)
        assert np.array_equal(np.asarray(decode_image(encoded(image))), np.asarray(image.convert("RGB")))
    for format in ("BMP", "GIF", "TIFF", "WEBP", "JPEG", "PPM"):
        assert decode_image(encoded(rgb, format)).mode == "RGB" and decode_image(encoded(rgb, format), channels=1).mode == "L"
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    r, g, b = decode_image(encoded(cmyk, "JPEG", quality=95)).getpixel((4, 4))
    assert r > 230 and g < 40 and b < 40
    assert decode_image(encoded(cmyk, "TIFF")).getpixel((0, 0)) == (255, 0, 0)

def test_transparency_lies_on_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    half.putpixel((0, 0), (255, 0, 0, 0))
    for image in (half, half.convert("LA"), half.quantize(4)):
        for channels in (1, 3):
            plain = np.asarray(decode_image(encoded(image), channels)).reshape(2, -1)
            assert (plain[0] == 255).all() and (plain[1] == 0).all()
    keyed = encoded(Image.new("RGB", (2, 2), (9, 8, 7)), transparency=(9, 8, 7))
    assert decode_image(keyed).getpixel((0, 0)) == (255, 255, 255)

@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits(format):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert np.asarray(decode_image(encoded(Image.fromarray(values), format), 1)).tolist() == [[0, 1, 128, 255]]

def test_wide_integers_and_floats_are_refused():
    for values in (np.array([[70000]], np.int32), np.array([[0.5]], np.float32)):
        with pytest.raises(UnreadableImageError, match="bits"): decode_image(encoded(Image.fromarray(values), "TIFF"), name="deep.tif")

@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ImageOps
    image, exif = picture(size=(6, 4)), Image.Exif()
    exif[0x0112] = orientation
    turned = decode_image(encoded(image, "PNG", exif=exif))
    assert turned.size == ((6, 4) if orientation < 5 else (4, 6))
    image.info["exif"] = exif.tobytes()
    reread = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))
    assert np.array_equal(np.asarray(turned), np.asarray(ImageOps.exif_transpose(reread)))

def test_damaged_files_have_names():
    whole = encoded(picture(size=(200, 200)), "JPEG")
    for bad in (whole[:-200], whole[:len(whole) // 2], encoded(picture())[:-30]):
        with pytest.raises(UnreadableImageError, match=r"cat\.jpg: cannot be decoded"): decode_image(bad, name="cat.jpg")
    for bad in (b"", b"<html>not found</html>", whole[:1]):
        with pytest.raises(NotAnImageError, match=r"cat\.jpg: no image"): decode_image(bad, name="cat.jpg")

def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png: too many pixels"): decode_image(encoded(picture()), name="bomb.png")

def test_noise_is_never_another_error():
    random, whole = np.random.RandomState(0), bytearray(encoded(picture(), "PNG"))
    for _ in range(150):
        bad = bytearray(whole)
        for i in random.randint(0, len(bad), 6): bad[i] = random.randint(256)
        try: decode_image(bytes(bad[:random.randint(1, len(bad) + 1)]))
        except UnreadableImageError: pass

def test_decoder_resizes_and_cuts_as_the_field_does(tmp_path):
    image = picture(size=(300, 270))
    image.save(tmp_path / "a.png")
    pixels = Decoder(224)(FileSource(str(tmp_path / "a.png"), "a.png"))
    resized = image.resize((int(256 * 300 / 270), 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), 16
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(resized.crop((left, top, left + 224, top + 224))))
    assert Decoder(64, 1)(FileSource(str(tmp_path / "a.png"), "a.png")).shape == (1, 64, 64)
    for size in ((1, 500), (500, 1), (63, 64), (65, 64)):
        picture(size=size).save(tmp_path / "b.png")
        assert Decoder(64)(FileSource(str(tmp_path / "b.png"), "b.png")).shape == (3, 64, 64)
    for wrong in (dict(size=0), dict(channels=2), dict(size=64, shorter=32)):
        with pytest.raises(ArrayError, match="positive size"): Decoder(**wrong)

def test_a_large_jpeg_read_at_lower_resolution_is_nearly_the_same(tmp_path):
    x, y = np.meshgrid(np.arange(1200), np.arange(900))
    image = Image.fromarray(np.stack([x * 255 / 1200, y * 255 / 900, (x + y) % 256], -1).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    small, exact = (Decoder(64)(FileSource(str(tmp_path / f"a.{e}"), "a")).float() for e in ("jpg", "png"))
    assert (small - exact).abs().mean() < 4


# ---------------------------------------------------------------- folders and archives

def same(a, b):
    return a.keys == b.keys and a.class_names == b.class_names and torch.equal(a.batch(range(len(a)))[0], b.batch(range(len(b)))[0])

def test_folder_zip_tar_and_tgz_are_one(tmp_path):
    folder = image_folder(photos(tmp_path / "photos"), size=16)
    assert folder.class_names == [f"bird{c}" for c in range(4)] and folder.shape == (3, 16, 16) and folder.name == "photos"
    assert [p.class_names for p in folder.split_classes()] == [["bird0", "bird1"], ["bird2", "bird3"]]
    root = tmp_path / "photos"
    for archive in (
        zipped(root, tmp_path / "photos.zip"),
        zipped(root, tmp_path / "stored.zip", "photos/", zipfile.ZIP_STORED),
        tarred(root, tmp_path / "photos.tar"),
        tarred(root, tmp_path / "named.tar", "photos"),
        tarred(root, tmp_path / "photos.tgz", mode="w:gz"),
        tarred(root, tmp_path / "p.tar.xz", mode="w:xz"),
    ):
        assert same(image_folder(archive, size=16), folder), archive
        assert same(image_folder(archive, size=16), folder)
    assert (tmp_path / "photos.unpacked" / "bird0" / "0.png").is_file() and (tmp_path / "p.unpacked").is_dir()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # no half-unpacked folder stays

@pytest.mark.parametrize(("kind", "start"), [("folder", "fork"), ("zip", "fork"), ("tar", "fork"), ("zip", "spawn")])
def test_workers_read_archives(tmp_path, kind, start):
    root = photos(tmp_path / "photos", 6, 8)
    path = {"folder": root, "zip": tmp_path / "photos.zip", "tar": tmp_path / "photos.tar"}[kind]
    if kind == "zip": zipped(root, path)
    if kind == "tar": tarred(root, path)
    s = image_folder(path, size=16)
    expected, labels, _ = s.raw_batch(range(len(s)))
    batches = s.class_batches(12, 2, seed=1)
    loader = s.loader(batches, workers=2)
    loader.multiprocessing_context = start
    for _ in range(1 if start == "spawn" else 3):
        for images, y, indices in loader:
            assert images.dtype == torch.uint8 and torch.equal(images, expected[indices]) and torch.equal(y, labels[indices])
    assert batches.epoch == (1 if start == "spawn" else 3)

def test_in_memory_and_pickle(tmp_path):
    s = image_folder(photos(tmp_path / "photos"), size=16)
    train, _ = s.split_classes()
    loaded = train.in_memory(workers=2)
    assert isinstance(loaded.images, torch.Tensor) and same(loaded, train)
    assert loaded.fingerprint == train.fingerprint and loaded.name == train.name
    assert "in memory" in loaded.describe() and "MB" in loaded.describe() and "decoded on demand" in repr(train)
    assert same(pickle.loads(pickle.dumps(train)), train)
    assert [len(x) for x, _, _ in s.loader(batch_size=5)] == [5, 5, 2]

def test_a_worker_names_the_damaged_file(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "bird1" / "1.png").write_bytes(encoded(picture())[:-40])
    s = image_folder(root)
    with pytest.raises(UnreadableImageError, match=r"bird1.1\.png"): s.in_memory(workers=1)
    assert list(s.unreadable()) == ["bird1/1.png"]
    (root / "bird1" / "1.png").unlink()
    with pytest.raises(MissingDataError, match="not there any more"): s.batch(range(12))

def test_what_belongs_to_a_class(tmp_path):
    root = photos(tmp_path / "photos", 2)
    for junk in (".DS_Store", "bird0/.hidden.png", "bird0/Thumbs.db", "__MACOSX/bird0/._0.png", "readme.txt", ".git/x/y"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_bytes(b"x")
    (root / "bird0" / "2024" / "may").mkdir(parents=True)
    picture(99).save(root / "bird0" / "2024" / "may" / "DEEP.JPG", "JPEG")
    (root / "bird1" / "no_ending").write_bytes(encoded(picture()))
    s = image_folder(root)
    assert s.class_names == ["bird0", "bird1"] and s.counts.tolist() == [4, 4]
    assert "bird0/2024/may/DEEP.JPG" in s.keys and "bird1/no_ending" in s.keys and s.unreadable() == {}

def test_links_are_followed_once(tmp_path):
    root = photos(tmp_path / "photos", 2)
    photos(tmp_path / "elsewhere", 1)
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "bird0")
    (root / "bird1" / "loop").symlink_to(root)
    s = image_folder(root)
    assert s.class_names == ["bird0", "bird1", "linked"] and s.counts.tolist() == [3, 3, 3] and s.unreadable() == {}

def test_bad_folders_have_names(tmp_path):
    with pytest.raises(MissingDataError, match=f"looked for {tmp_path}/none"): image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError): image_folder(tmp_path / "none")
    (tmp_path / "flat").mkdir()
    picture().save(tmp_path / "flat" / "a.png")
    with pytest.raises(EmptyClassError, match="no sub-folder"): image_folder(tmp_path / "flat")
    root = photos(tmp_path / "photos")
    picture().save(root / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png: an image beside the class folders"): image_folder(root)
    (root / "stray.png").unlink()
    (root / "bird9").mkdir()
    with pytest.raises(EmptyClassError, match="class 'bird9' has no image"): image_folder(root)
    (root / "bird9" / "notes.txt").write_text("hello")
    with pytest.raises(NotAnImageError, match=r"notes\.txt: no image of a kind"): image_folder(root)
    (root / "bird9" / "notes.txt").rename(root / "bird9" / "photo.jpg")
    with pytest.raises(NotAnImageError, match=r"photo\.jpg"): image_folder(root).in_memory()


# ---------------------------------------------------------------- the benchmarks' layouts

def omniglot_part(folder, characters, drawings=3, seed=0):
    for alphabet, character in characters:
        (folder / alphabet / character).mkdir(parents=True)
        for k in range(drawings):
            picture(seed + k, (105, 105), "1").save(folder / alphabet / character / f"{int(character[-2:]):04d}_{k:02d}.png")
    return folder

def test_both_halves_of_omniglot_keep_their_official_split(tmp_path):
    omniglot_part(tmp_path / "images_background", [("Greek", "character01"), ("Latin", "character01")])
    omniglot_part(tmp_path / "images_background_small1", [("Greek", "character01")])
    omniglot_part(tmp_path / "images_evaluation", [("Tibetan", "character01"), ("Atlantean", "character02")])
    train, test = omniglot(tmp_path).split_classes()
    assert (train.class_names, test.class_names) == (["Greek/character01", "Latin/character01"], ["Atlantean/character02", "Tibetan/character01"])
    train, test = open_sets(Grid(dict(recipe="plain", data=dict(source=f"omniglot:{tmp_path}", valid=0))).cells[0]).values()
    assert (len(train), len(test)) == (6, 6), "a grid, too, keeps to it"

def test_omniglot_pools_parts_and_counts_shared_characters_once(tmp_path):
    greek, latin, tagalog = [("Greek", "character01"), ("Greek", "character02")], [("Latin", "character01")], [("Tagalog", "character01")]
    a = omniglot_part(tmp_path / "src" / "images_background_small1", greek + latin)
    b = omniglot_part(tmp_path / "src" / "images_background_small2", greek + tagalog)
    unpacked = omniglot(tmp_path / "src")
    assert unpacked.class_names == ["Greek/character01", "Greek/character02", "Latin/character01", "Tagalog/character01"]
    assert unpacked.counts.tolist() == [3] * 4 and unpacked.shape == (1, 32, 32) and unpacked.keys[0] == "Greek/character01/0001_00.png"
    assert [p.class_names for p in unpacked.split_classes()] == [unpacked.class_names[::2], unpacked.class_names[1::2]]
    (tmp_path / "zips").mkdir()
    for part in (a, b): zipped(part, tmp_path / "zips" / f"{part.name}.zip", f"{part.name}/")
    assert same(omniglot(tmp_path / "zips"), unpacked)
    assert len(omniglot(tmp_path / "zips" / "images_background_small2.zip").class_names) == 3 == len(omniglot(a).class_names)
    with pytest.raises(ChecksumError, match="small1"): omniglot(tmp_path / "zips", verify=True)
    assert omniglot(a, size=28).shape == (1, 28, 28)
    with pytest.raises(MissingDataError, match=r"images_background_small1.*Download"): omniglot(tmp_path)
    with pytest.raises(MissingDataError, match="brendenlake"): omniglot(tmp_path / "none")

def cub(folder, classes=4, each=3):
    rows, labels, names = [], [], []
    for c in range(1, classes + 1):
        name = f"{c:03d}.Bird_{c}"
        names.append(f"{c} {name}")
        (folder / "images" / name).mkdir(parents=True)
        for k in range(each):
            picture(c * 10 + k, (90, 70)).save(folder / "images" / name / f"{k}.jpg")
            rows.append(f"{len(rows) + 1} {name}/{k}.jpg")
            labels.append(f"{len(rows)} {c}")
    for name, lines in (("images.txt", rows), ("image_class_labels.txt", labels), ("classes.txt", names)):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder

def test_cub_opens_from_every_place(tmp_path):
    folder = cub(tmp_path / "a" / "CUB_200_2011")
    s = cub200(folder)
    assert s.shape == (3, 64, 64) and s.class_names[0] == "001.Bird_1" and s.counts.tolist() == [3] * 4 and s.keys[0] == "001.Bird_1/0.jpg"
    assert [p.class_names for p in s.split_classes()] == [s.class_names[:2], s.class_names[2:]]
    assert same(cub200(tmp_path / "a"), s) and cub200(folder, size=32).shape == (3, 32, 32)
    for place in "bcd": (tmp_path / place).mkdir()
    for place, archive in {
        "b": tarred(folder, tmp_path / "b" / "CUB_200_2011.tgz", folder.name, "w:gz"),
        "c": tarred(folder, tmp_path / "c" / "CUB_200_2011_subset.tar", folder.name),
        "d": zipped(folder, tmp_path / "d" / "CUB_200_2011.zip", "CUB_200_2011/"),
    }.items():
        assert same(cub200(tmp_path / place), s) and same(cub200(archive), s) and same(cub200(str(archive)), s)
    (tmp_path / "b" / "CUB_200_2011.tgz").unlink()
    assert same(cub200(tmp_path / "b"), s)  # what was unpacked stays usable
    with pytest.raises(ChecksumError, match="no published checksum"): cub200(tmp_path / "c", verify=True)

def test_cub_faults_have_names(tmp_path):
    with pytest.raises(MissingDataError, match=r"CUB_200_2011.*fetch\('cub200', folder\).* from https://"): cub200(tmp_path)
    folder = cub(tmp_path / "CUB_200_2011")
    def spoiled(name, change):
        text = (folder / name).read_text()
        (folder / name).write_text(change(text))
        return lambda: (folder / name).write_text(text)
    for name, change, error, message in (
        ("classes.txt", lambda t: t + "5 005.None\n", EmptyClassError, r"class '005\.None' has no image"),
        ("classes.txt", lambda t: t.replace("4 004.Bird_4\n", ""), DataError, "class 4, which classes.txt does not list"),
        ("image_class_labels.txt", lambda t: t.replace("12 4\n", ""), DataError, "class none"),
        ("images.txt", lambda t: t + "13\n", DataError, r"images\.txt: entry 13 is \['13'\]"),
    ):
        restore = spoiled(name, change)
        with pytest.raises(error, match=message): cub200(folder)
        restore()
    (folder / "images" / "001.Bird_1" / "1.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"images/001\.Bird_1/1\.jpg is listed but missing"): cub200(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(MissingDataError, match=r"classes\.txt is missing"): cub200(folder)


def cars(folder, layout, models=4, each=3):
    "CARS196 in small, in the layout of one archive (`car_ims`) or of two (`cars_train`, `cars_test`)."
    names = np.array([f"Make Model {c} 2012" for c in range(1, models + 1)], object)
    images = [(c, k) for k in range(each) for c in range(1, models + 1)]  # the lists are not in the order of classes
    field = "relative_im_path" if layout == "car_ims" else "fname"
    kinds = [(field, object), ("bbox_x1", object), ("class", object), ("test", object)]
    def entry(i): return (f"car_ims/{i + 1:06d}.jpg" if layout == "car_ims" else f"{i % 6 + 1:05d}.jpg", 5, images[i][0], i % 2)
    parts = {"car_ims": range(12)} if layout == "car_ims" else {"cars_train": range(6), "cars_test": range(6, 12)}
    for part, chosen in parts.items():
        (folder / part).mkdir(parents=True)
        for i in chosen: picture(i, (60, 45)).save(folder / part / entry(i)[0].split("/")[-1])
        rows = np.array([entry(i) for i in chosen], kinds)
        (folder / "devkit").mkdir(exist_ok=True)
        to = {"car_ims": "cars_annos.mat", "cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}[part]
        savemat(folder / to, {"annotations": rows} | ({"class_names": names} if layout == "car_ims" else {}), do_compression=True)
    if layout != "car_ims": savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    return folder

@pytest.mark.parametrize("layout", ["car_ims", "cars_train"])
def test_cars_open_packed_and_unpacked(tmp_path, layout, monkeypatch):
    folder = cars(tmp_path / "cars", layout)
    s = cars196(folder)
    assert s.class_names == [f"Make Model {c} 2012" for c in range(1, 5)] and s.counts.tolist() == [3] * 4 and s.shape == (3, 64, 64)
    assert [p.class_names for p in s.split_classes()] == [s.class_names[:2], s.class_names[2:]]
    assert s.keys[:2] == (["car_ims/000001.jpg", "car_ims/000005.jpg"] if layout == "car_ims" else ["cars_train/00001.jpg", "cars_train/00005.jpg"])
    packed = {"car_ims": "car_ims.tgz", "cars_train": "cars_train.tgz", "cars_test": "cars_test.tgz", "devkit": "car_devkit.tgz"}
    (tmp_path / "packed").mkdir()
    for part, archive in packed.items():
        if (folder / part).is_dir() and list((folder / part).iterdir()): tarred(folder / part, tmp_path / "packed" / archive, part, "w:gz")
    for mat in folder.glob("*.mat"): shutil.copy(mat, tmp_path / "packed")
    again = cars196(tmp_path / "packed")
    assert same(again, s) and same(cars196(tmp_path / "packed"), s) and again.fingerprint == s.fingerprint
    assert same(cars196(tarred(folder, tmp_path / "CARS196.tar", "CARS196")), s)  # all of it in one archive
    with pytest.raises(ChecksumError, match=r"car.*\.(tgz|mat): its (md5|sha256) is"): cars196(tmp_path / "packed", verify=True)
    for file in (tmp_path / "packed").iterdir():
        if file.is_file(): monkeypatch.setitem(PUBLISHED, file.name, Published("", "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()))
    assert same(cars196(tmp_path / "packed", verify=True), s)
    for archive in (tmp_path / "packed").glob("*.tgz"): archive.unlink()
    assert same(cars196(tmp_path / "packed"), s)  # what was unpacked stays usable

def test_cars_faults_have_names(tmp_path):
    with pytest.raises(MissingDataError, match=r"no cars_annos\.mat here.*fetch\('cars196', folder\)"): cars196(tmp_path)
    with pytest.raises(MissingDataError, match=r"no cars196 here.*fetch\('cars196', folder\)"): cars196(tmp_path / "none")
    folder = cars(tmp_path / "cars", "car_ims")
    whole = (folder / "cars_annos.mat").read_bytes()
    (folder / "car_ims" / "000007.jpg").rename(folder / "x.jpg")
    with pytest.raises(MissingDataError, match=r"car_ims/000007\.jpg is listed but missing"): cars196(folder)
    names, kinds = np.array(["a", "b"], object), [("relative_im_path", object), ("class", object)]
    for rows, classes, message in (
        ([("car_ims/000001.jpg", 3)], names, "class 3, not a name and a number in 1..2"),
        ([("car_ims/000001.jpg", 1.5)], names, "class 1.5, not"), ([(7, 1)], names, "image 7 and"),
        ([("car_ims/000001.jpg", 1)] * 2, names, "is listed twice"), ([("car_ims/000001.jpg", 1)], np.array(["a", "a"], object), "no distinct names"),
    ):
        savemat(folder / "cars_annos.mat", {"annotations": np.array(rows, kinds), "class_names": classes})
        with pytest.raises(DataError, match=message): cars196(folder)
    savemat(folder / "cars_annos.mat", {"class_names": names})
    with pytest.raises(DataError, match="has no list of annotations"): cars196(folder)
    (folder / "cars_annos.mat").write_bytes(whole[:300])
    with pytest.raises(DataError, match="cannot be read as a MATLAB 5 file"): cars196(folder)

def products(folder, train=3, test=2, each=3):
    "Stanford Online Products in small."
    number = 0
    for role, classes in (("train", range(1, train + 1)), ("test", range(train + 1, train + test + 1))):
        lines = ["image_id class_id super_class_id path"]
        for c in classes:
            kind = ["bicycle", "coffee maker"[:6]][c % 2]
            (folder / f"{kind}_final").mkdir(parents=True, exist_ok=True)
            for k in range(each):
                number += 1
                picture(number, (50, 40)).save(folder / f"{kind}_final" / f"{1000 + c}_{k}.JPG", "JPEG")
                lines.append(f"{number} {c} {c % 2 + 1} {kind}_final/{1000 + c}_{k}.JPG")
        (folder / f"Ebay_{role}.txt").write_text("\n".join(lines) + "\n")
    return folder

def test_sop_splits_by_its_own_lists(tmp_path):
    folder = products(tmp_path / "a" / "Stanford_Online_Products")
    s = sop(tmp_path / "a")
    assert s.counts.tolist() == [3] * 5 and s.class_names == ["coffee/1", "bicycle/2", "coffee/3", "bicycle/4", "coffee/5"]
    train, test = s.split_classes()
    assert train.class_names == s.class_names[:3] and test.class_names == s.class_names[3:]  # half would have been two and three
    rest, held, same_test = s.split_classes(valid=0.4)
    assert same_test.keys == test.keys and sorted(rest.keys + held.keys) == sorted(train.keys)
    assert "split: by classes: the official lists: 9 train, 6 test images" in s.describe()
    with pytest.raises(SplitError, match="official split, which no share changes"): s.split_classes(0.5)
    with pytest.raises(SplitError, match="one part of an official split already"): train.split_classes()
    with pytest.raises(SplitError, match="no official queries"): test.query_gallery()
    (tmp_path / "b").mkdir()
    archive = zipped(folder, tmp_path / "b" / "Stanford_Online_Products.zip", "Stanford_Online_Products/")
    assert same(sop(tmp_path / "b"), s) and same(sop(archive), s) and same(sop(folder), s)
    with pytest.raises(ChecksumError): sop(archive, verify=True)
    with pytest.raises(ChecksumError): sop(tmp_path / "b", verify=True)

def test_sop_faults_have_names(tmp_path):
    with pytest.raises(MissingDataError, match=r"fetch\('sop', folder\)"): sop(tmp_path)
    folder = products(tmp_path / "sop")
    lists = {role: (folder / f"Ebay_{role}.txt").read_text() for role in ("train", "test")}
    for role, change, message in (
        ("train", lambda t: t.split("\n", 1)[1], "not with the heading"),
        ("test", lambda t: t + "16 1 2 bicycle_final/1002_0.JPG\n", "listed twice"),
        ("test", lambda t: t.replace("4 bicycle", "bicycle") + "16 1 2", "entry .* not 4 words"),
        ("test", lambda t: t.replace("bicycle_final/1004_0", "bicycle_final/../../x"), "listed but missing"),
        ("test", lambda t: t.replace(" 5 2 ", " 1 2 "), r"class 'coffee/1' is in the training and in the test list"),
        ("train", lambda t: "", "not with the heading"),
    ):
        (folder / f"Ebay_{role}.txt").write_text(change(lists[role]))
        with pytest.raises(DataError, match=message): sop(folder)
        (folder / f"Ebay_{role}.txt").write_text(lists[role])

def garments(folder, train=3, test=2, nested=""):
    "In-Shop in small: of every test garment two queries and one gallery image."
    rows = []
    for c in range(1, train + test + 1):
        for k in range(3):
            key = f"img/WOMEN/Dresses/id_{c:08d}/{k:02d}_1_front.jpg"
            (folder / nested / key).parent.mkdir(parents=True, exist_ok=True)
            picture(c * 10 + k, (40, 60)).save(folder / nested / key)
            rows.append(f"{key:60} id_{c:08d}  {'train' if c <= train else 'gallery' if k == 2 else 'query'}")
    place = folder / ("Eval" if nested else "")
    place.mkdir(exist_ok=True)
    (place / "list_eval_partition.txt").write_text("\n".join([str(len(rows)), "image_name item_id evaluation_status", *rows]) + "\n")
    return folder

def test_inshop_asks_queries_of_a_gallery(tmp_path):
    s = inshop(garments(tmp_path / "a"))
    assert same(inshop(garments(tmp_path / "b", nested="Img")), s)
    (tmp_path / "c").mkdir()
    zipped(tmp_path / "a" / "img", tmp_path / "c" / "img.zip", "img/")
    shutil.copy(tmp_path / "a" / "list_eval_partition.txt", tmp_path / "c")
    assert same(inshop(tmp_path / "c"), s)
    train, test = s.split_classes()
    assert [len(p.class_names) for p in (train, test)] == [3, 2] and set(train.roles) == {"train"}
    queries, gallery = test.query_gallery()
    assert len(queries) == 4 and len(gallery) == 2 and test.labels[gallery].tolist() == [0, 1]
    assert sorted([*queries.tolist(), *gallery.tolist()]) == list(range(6))
    z = torch.nn.functional.one_hot(test.labels, 2).float()
    found = retrieval_metrics(z[queries], test.labels[queries], (1,), gallery=z[gallery], gallery_labels=test.labels[gallery])
    assert found["recall_at_1"] == 1.0
    loaded = test.in_memory()
    assert loaded.roles == test.roles and loaded.fingerprint == test.fingerprint and pickle.loads(pickle.dumps(loaded)).roles == test.roles
    bare = ImageSet(test.images, test.labels, test.class_names, test.keys, test.name, "first", rows=test.rows)
    assert bare.fingerprint != test.fingerprint
    with pytest.raises(SplitError, match="no official queries and gallery"): train.query_gallery()

def test_inshop_faults_have_names(tmp_path):
    with pytest.raises(MissingDataError, match=r"fetch\('inshop', folder\) says"): inshop(tmp_path)
    folder = garments(tmp_path / "inshop")
    list_file = folder / "list_eval_partition.txt"
    whole = list_file.read_text()
    for change, message in (
        (lambda t: t.replace("15\n", "52712\n", 1), "announces '52712' images and lists 15"), (lambda t: t[:-80], "announces|not 3 words"),
        (lambda t: t.replace("image_name item_id", "a b", 1), "no heading"), (lambda t: t.replace(" query", " spare", 1), "each one of train, test"),
        (lambda t: "", "announces '' images"), (lambda t: t.replace("train", "query", 1), "is in the training and in the test list"),
    ):
        list_file.write_text(change(whole))
        with pytest.raises(DataError, match=message): inshop(folder)

def test_roles_are_checked():
    x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for roles in (None, ["train"] * 3, ["train", "train", "exam", "exam"]):
        with pytest.raises(ArrayError, match="one role an image"): ImageSet(x, [0, 0, 1, 1], ["a", "b"], list("wxyz"), split="official", roles=roles)


# ---------------------------------------------------------------- decoded once

def test_cached_pixels_are_the_same_and_shared(tmp_path):
    s = image_folder(photos(tmp_path / "photos", 4, 20), size=16)
    train, test = s.split_classes()
    first = train.cached(tmp_path / "cache", workers=2)
    file, = (tmp_path / "cache").glob("*.pixels")
    assert file.stat().st_size == 40 * 3 * 16 * 16 + 32 and "mapped into memory" in first.describe()
    for p in (tmp_path / "photos" / "bird0").iterdir(): os.utime(p, ns=(p.stat().st_atime_ns, p.stat().st_mtime_ns))
    again = train.cached(tmp_path / "cache")
    assert same(first, train) and same(again, train) and again.fingerprint == train.fingerprint and again.cached(tmp_path / "none").images is again.images
    assert not (tmp_path / "none").exists() and len(list((tmp_path / "cache").glob("*.pixels"))) == 1
    assert same(again.subset([3, 1, 30]), train.subset([3, 1, 30])) and same(pickle.loads(pickle.dumps(again)), train)
    loader = again.loader(again.class_batches(4, 2), workers=2)
    for images, labels, rows in loader: assert torch.equal(images, train.raw_batch(rows)[0]) and torch.equal(labels, train.labels[rows])
    assert not same(test.cached(tmp_path / "cache"), train) and len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    assert len(pickle.dumps(again.images)) < 1000  # a worker opens the file, nobody sends the pixels
    images = again.raw_batch([0])[0]
    images += 1  # a batch is the caller's own: the file stays as it is
    assert torch.equal(again.raw_batch([0])[0], train.raw_batch([0])[0])

def test_the_cache_knows_what_it_was_made_of(tmp_path):
    root = photos(tmp_path / "photos", 2, 2)
    def cached(**options): return image_folder(root, **options).cached(tmp_path / "cache")
    before = cached(size=16)
    assert cached(size=16, channels=1).shape == (1, 16, 16) and cached(size=16, shorter=20).shape == (3, 16, 16)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 3
    picture(99).save(root / "bird0" / "0.png")  # the same name, another picture
    os.utime(root / "bird0" / "0.png", ns=(0, 0))
    after = cached(size=16)
    assert same(after, image_folder(root, size=16)) and not same(after, before)

def test_a_damaged_cache_is_made_again(tmp_path):
    s = image_folder(photos(tmp_path / "photos", 2, 3), size=16)
    s.cached(tmp_path / "cache")
    file, = (tmp_path / "cache").glob("*.pixels")
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged; it is made again"): assert same(s.cached(tmp_path / "cache"), s)
        assert file.read_bytes() == whole

def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    s = image_folder(photos(tmp_path / "photos", 2, 3), size=16)
    with pytest.raises(DataError, match=r"6 images of 3x16x16 take .* the limit is .*Give limit="): s.cached(tmp_path / "cache", limit=4000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="take 4,640 bytes, 1,000 are free; make room"): s.cached(tmp_path / "cache")
    monkeypatch.undo()
    (tmp_path / "photos" / "bird1" / "2.png").write_bytes(encoded(picture())[:-40])
    with pytest.raises(UnreadableImageError, match=r"2\.png"): image_folder(tmp_path / "photos", size=16).cached(tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]  # nothing half-made stays

def test_those_that_come_together_make_the_cache_once(tmp_path, monkeypatch):
    s = image_folder(photos(tmp_path / "photos", 2, 4), size=16)
    write, made = room._write_pixels, []
    def slowly(*given):
        made.append(1)
        time.sleep(0.3)
        write(*given)
    monkeypatch.setattr(room, "_write_pixels", slowly)
    with ThreadPoolExecutor(3) as pool: found = list(pool.map(lambda _: s.cached(tmp_path / "cache"), range(3)))  # a lock counts for every open file
    assert len(made) == 1 and all(same(one, s) for one in found)


# ---------------------------------------------------------------- real images

def test_real_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MDPROP_TEST_DATA", str(tmp_path))
    assert real_data_folder() == tmp_path
    monkeypatch.setenv("MDPROP_TEST_DATA", str(tmp_path / "none"))
    with pytest.raises(MissingDataError, match="correct it or unset it"): real_data_folder()
    monkeypatch.delenv("MDPROP_TEST_DATA")
    assert real_data_folder() in (None, Path(room.__file__).resolve().parents[2] / "shared" / "data")

@pytest.fixture
def real():
    folder = real_data_folder()
    if folder is None: pytest.skip("no real images here: set MDPROP_TEST_DATA to a folder with the Omniglot zips and the CUB subset")
    return folder

@pytest.mark.real
def test_real_omniglot(real):
    s = omniglot(real, verify=True)
    assert len(s) == 4840 and len(s.class_names) == 242 and set(s.counts.tolist()) == {20} and s.unreadable() == {}
    train, test = s.split_classes()
    assert train.class_names == sorted(s.class_names)[::2] and test.class_names == sorted(s.class_names)[1::2]

@pytest.mark.real
def test_real_cub(real):
    s = cub200(real)
    assert len(s) == 5902 and len(s.class_names) == 100 and (int(s.counts.min()), int(s.counts.max())) == (45, 60)
    assert [len(p.class_names) for p in s.split_classes()] == [50, 50]
    images, labels, indices = next(iter(s.loader(s.class_batches(32, 4), workers=2)))
    assert images.shape == (32, 3, 64, 64) and torch.equal(images, s.raw_batch(indices)[0]) and torch.equal(labels, s.labels[indices])
