"""Every reader of files from elsewhere gets 20,000 damaged ones: each ends in a right answer or in its own named error, never in another."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, picture
from scipy.io import savemat
from torch import nn

from mdprop.archives import DataError, UnreadableFileError, open_tree, read_matlab
from mdprop.data import ImageSet, cars196, cub200, decode_image, inshop, sop
from mdprop.density import DensityStats
from mdprop.model import Embedder, ModelError
from mdprop.project import _recall
from mdprop.robustness import RobustnessReport, _Kept, _report_of
from mdprop.runs import Run, RunError, Snapshot, load_tensors, read_timings, save_metrics, save_snapshot, save_tensors

CASES = 20_000  # for every reader, shared by the files that one reader reads
WORDS = [b"NaN", b"Infinity", b"1e999", b"-1", b"null", b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"../", b"9" * 30,
         b"true", b"\\ud800", b" ", b"\r", b"\t", b"[" * 2000]  # fmt: skip
NUMBERS = [struct.pack(kind, value) for kind, values in (("<I", (0, 1, 2**31 - 1, 2**31, 2**32 - 1)), ("<Q", (0, 2**62, 2**64 - 1)), ("<H", (0, 65535)))
           for value in values]  # fmt: skip


def damaged(whole: bytes, cases: int = CASES, seed: int = 0):
    "The bytes, each time with one to four faults: changed, lost, repeated, moved or foreign pieces, extreme numbers, an early end."
    random = np.random.default_rng(seed)
    for _ in range(cases):
        data = bytearray(whole)
        for fault in random.integers(0, 8, random.integers(1, 5)).tolist():
            n = len(data)
            at, end = sorted(random.integers(0, n + 1, 2).tolist())
            end = min(end, at + 64)
            if fault == 0 and at < n: data[at] ^= 1 << int(random.integers(8))
            elif fault == 1 and at < n: data[at] = int(random.integers(256))
            elif fault == 2: del data[at:end]
            elif fault == 3: data[at:at] = data[end:end + 64]
            elif fault == 4: data[at:end] = random.bytes(end - at)
            elif fault == 5: data[at:at] = WORDS[int(random.integers(len(WORDS)))]
            elif fault == 6: data[at:at + len(number)] = (number := NUMBERS[int(random.integers(len(NUMBERS)))])
            elif fault == 7 and not random.integers(4): del data[at:]
        yield bytes(data)


def fuzz(read, whole: bytes, error, right=lambda found: True, cases: int = CASES, refused=lambda found: False):
    "Reads every damaged version; returns how many were read and how many refused, by an error or by what came back."
    assert right(read(whole))
    counts = [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in damaged(whole, cases):
            try: found = read(data)
            except error: counts[1] += 1
            except Exception as other: raise AssertionError(f"{type(other).__name__}: {other}\nfrom {data[:2000]!r}") from other
            else:
                counts[refused(found)] += 1
                assert right(found), data[:2000]
    assert counts[1] > cases / 50  # the faults were faults
    return counts


@pytest.fixture
def tmp_path():
    "In memory where the system has such a folder: a disk would take most of the time."
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder: yield Path(folder)

def from_file(path, read, *arguments):
    "A reader of bytes, made of a reader of a file."
    def of_bytes(data):
        path.write_bytes(data)
        return read(*arguments)
    return of_bytes


# ---------------------------------------------------------------- run folders

@pytest.fixture
def run(tmp_path):
    "The smallest run folder that has everything."
    folder = tmp_path / "run"
    config = dict(format=1, versions={"mdprop": "0.1"}, recipe=dict(name="plain", share=None), domains=["clean"], model=dict(backbone="small", dim=4),
                  training=dict(epochs=2), data=dict(name="x", class_names=["a"]))  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps({"test": {"recall_at_1": 0.5}}))
    (folder / "notes.json").write_text(json.dumps({"notes": [dict(epoch=1, step=3, what="collapsed", text="all embeddings are equal")]}))
    save_metrics(folder, [dict(epoch=e, loss=1 / e, recall_at_1=0.1 * e, seconds=2.0) for e in (1, 2, 3)])
    z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    save_snapshot(folder, Snapshot(z, np.arange(5) % 2, ["a", "b"], list("vwxyz"), np.zeros((5, 2, 2, 3), np.uint8), "test"))
    return folder

def test_tensors(tmp_path):
    path = tmp_path / "last.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    save_tensors(path, tensors, epoch=3, name="x")
    def same(found): return found[0].keys() == tensors.keys() and all(torch.equal(found[0][k], v) for k, v in tensors.items()) and found[1].get("epoch") == 3
    fuzz(from_file(path, load_tensors, path), path.read_bytes(), RunError, lambda found: same(found) or no_checksum(path))

def no_checksum(path):
    "Files of mdprop 0.1 have no checksum; a fault that renames it in the header makes such a file."
    return b'"sha256"' not in path.read_bytes()

@pytest.mark.parametrize("name", ["config", "results", "notes"])
def test_json_of_a_run(run, name):
    def read(): return Run(run) if name == "config" else getattr(Run(run), name)
    def right(found): return isinstance(found.config if name == "config" else found, list if name == "notes" else dict)
    fuzz(from_file(run / f"{name}.json", read), (run / f"{name}.json").read_bytes(), RunError, right, CASES // 3 + 1)

@pytest.mark.parametrize("name", ["metrics", "timings"])
def test_tables_of_a_run(run, name):
    def read(): return read_timings(run) if name == "timings" else Run(run).metrics
    def right(table): return all(isinstance(epoch, int) for epoch in table) if name == "timings" else table["epoch"].dtype == np.int64
    if name == "metrics": (run / "timings.csv").unlink()
    fuzz(from_file(run / f"{name}.csv", read), (run / f"{name}.csv").read_bytes(), RunError, right, CASES // 2)

@pytest.mark.parametrize("part", ["embeddings", "items"])
def test_snapshots(run, part):
    def right(found): return found.z.ndim == 2 and len(found.z) == len(found.labels) == len(found.keys)
    fuzz(from_file(run / part / "test.npz", lambda: Run(run).snapshot("test")), (run / part / "test.npz").read_bytes(), RunError, right, CASES // 2)

def test_density_statistics(tmp_path):
    stats = DensityStats()
    stats.update(torch.nn.functional.normalize(torch.randn(20, 3), dim=1), torch.arange(20) % 4)
    stats.save(tmp_path / "d.npz")
    fuzz(from_file(tmp_path / "d.npz", DensityStats.load, tmp_path / "d.npz"), (tmp_path / "d.npz").read_bytes(), ValueError, lambda s: isinstance(s.n, int))

def test_layouts(tmp_path):
    xy = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    np.savez(tmp_path / "l.npz", xy=xy)
    def right(found): return found is None or (found.shape == (9, 2) and bool(np.isfinite(found).all()))  # None: it is computed again
    fuzz(from_file(tmp_path / "l.npz", _recall, tmp_path, "l", 9), (tmp_path / "l.npz").read_bytes(), (), right, CASES // 2, refused=lambda xy: xy is None)

def test_attack_outcomes(tmp_path):
    folder, settings, sample = tmp_path, dict(attacks=["TMA", "GTM"]), torch.rand(4)
    kept = _Kept.open(folder, settings, sample, 5)
    kept.add(torch.arange(3), np.random.default_rng(0).normal(size=(3, 2)))
    def right(found): return found.values.shape == (5, 2) and found.finished.shape == (5,) and found.finished.dtype == torch.bool
    read = from_file(kept.path, _Kept.open, folder, settings, sample, 5)
    fuzz(read, kept.path.read_bytes(), (), right, CASES // 2, refused=lambda found: not found.finished.any())

@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_models_of_the_hub(tmp_path, part):
    model = Embedder(nn.Conv2d(1, 2, 1), 2, (1, 4, 4), [0.5], [0.2])
    model.save_pretrained(tmp_path)
    def read(): return Embedder.from_pretrained(tmp_path, backbone=nn.Conv2d(1, 2, 1))
    fuzz(from_file(tmp_path / part, read), (tmp_path / part).read_bytes(), ModelError, lambda found: isinstance(found, Embedder), CASES // 2)

REPORT = dict(
    settings=dict(data="x", eps=0.03), signs=["one"], curves=[], transfer=[], searches=[],
    scores=[dict(distribution="clean", strength=0.0, measure="ERS", score=50.0, error=1.0, images=9)],
)  # fmt: skip

def test_robustness_reports(tmp_path):
    path = tmp_path / "robustness.json"
    def right(report): return isinstance(report, RobustnessReport) and isinstance(report.settings, dict) and isinstance(report.signs, list)
    fuzz(from_file(path, _report_of, tmp_path), json.dumps(REPORT).encode(), RunError, right)


# ---------------------------------------------------------------- structure, not bytes

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
def some_of(whole): return st.fixed_dictionaries({}, optional={name: JSON | (value if isinstance(value, st.SearchStrategy) else st.just(value))
                                                              for name, value in whole.items()})  # fmt: skip

CONFIG = dict(format=1, versions={}, recipe=some_of(dict(name="plain", share="statistics")), domains=st.lists(st.sampled_from(["clean", "multi"]) | JSON),
              training=some_of(dict(epochs=2)), data=some_of(dict(name="x", class_names=["a"])),
              model=some_of(dict(backbone="resnet10", dim=2, image_shape=[1, 4, 4], mean=[0.5], std=[0.2], width=2)))  # fmt: skip

@settings(max_examples=500)
@given(given_config=some_of(CONFIG) | JSON)
def test_any_json_as_config(tmp_path_factory, given_config):
    folder = tmp_path_factory.getbasetemp() / "any_config"
    folder.mkdir(exist_ok=True)
    if not (folder / "best.safetensors").exists(): save_tensors(folder / "best.safetensors", {"model.head.weight": torch.ones(2, 2)}, epoch=1)
    (folder / "config.json").write_text(json.dumps(given_config), encoding="utf-8", errors="replace")
    for use in (lambda run: run.config, repr, Run.model):
        try: use(Run(folder))
        except RunError: pass

@pytest.mark.filterwarnings("ignore")  # pandas wonders at lists of unequal length
@settings(max_examples=200)
@given(given_report=some_of(REPORT) | JSON)
def test_any_json_as_report(tmp_path_factory, given_report):
    folder = tmp_path_factory.getbasetemp() / "any_report"
    folder.mkdir(exist_ok=True)
    (folder / "robustness.json").write_text(json.dumps(given_report), encoding="utf-8", errors="replace")
    try: assert isinstance(_report_of(folder), RobustnessReport)
    except RunError: pass


# ---------------------------------------------------------------- lists of data sets

def jpeg(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never decoded here")

LISTS = {
    "images.txt": (cub200, "1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n"), "image_class_labels.txt": (cub200, "1 1\n2 1\n3 2\n"),
    "classes.txt": (cub200, "1 001.A\n2 002.B\n"),
    "Ebay_train.txt": (sop, "image_id class_id super_class_id path\n1 1 1 a_final/1_0.JPG\n2 2 1 a_final/2_0.JPG\n"),
    "Ebay_test.txt": (sop, "image_id class_id super_class_id path\n3 3 1 a_final/3_0.JPG\n"),
    "list_eval_partition.txt": (inshop, "3\nimage_name item_id evaluation_status\nimg/1.jpg id_1 train\nimg/2.jpg id_2 query\nimg/3.jpg id_2 gallery\n"),
}  # fmt: skip

@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    opened = LISTS[name][0]
    images = {cub200: ("images/001.A/a.jpg", "images/001.A/b.jpg", "images/002.B/c.jpg"), sop: ("a_final/1_0.JPG", "a_final/2_0.JPG", "a_final/3_0.JPG"),
              inshop: ("img/1.jpg", "img/2.jpg", "img/3.jpg")}[opened]  # fmt: skip
    for image in images: jpeg(tmp_path / image)
    for other, (owner, text) in LISTS.items():
        if owner is opened: (tmp_path / other).write_text(text)
    def right(found): return isinstance(found, ImageSet) and len(found) <= 3 and int(found.counts.min()) > 0
    cases = CASES // len([other for other, (owner, _) in LISTS.items() if owner is opened]) + 1
    fuzz(from_file(tmp_path / name, opened, tmp_path), LISTS[name][1].encode(), DataError, right, cases)

CARS = np.array([(f"car_ims/{i}.jpg", 1 + i % 2, 7) for i in range(3)], [("relative_im_path", object), ("class", object), ("bbox_x1", object)])

@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_annotations(tmp_path, compressed):
    file = io.BytesIO()
    savemat(file, {"annotations": CARS, "class_names": np.array(["a", "b"], object)}, do_compression=compressed)
    def right(found): return isinstance(found, dict)
    fuzz(lambda data: read_matlab(data, ("relative_im_path", "class")), file.getvalue(), UnreadableFileError, right, CASES // 2)

def test_cars_from_damaged_annotations(tmp_path):
    for i in range(3): jpeg(tmp_path / "car_ims" / f"{i}.jpg")
    file = io.BytesIO()
    savemat(file, {"annotations": CARS, "class_names": np.array(["a", "b"], object)})
    def right(found): return 1 <= len(found) <= 3
    fuzz(from_file(tmp_path / "cars_annos.mat", cars196, tmp_path), file.getvalue(), DataError, right, cases=2000)  # the same reader, and its list


# ---------------------------------------------------------------- archives and images

def read_all(path):
    "Everything in an archive."
    return {name: source.read() for name, source in open_tree(path).files.items()}

def test_zips(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
        for name in ("a/x.txt", "b/y.txt"): z.writestr(name, name * 20)
    def right(found): return all(len(data) < 10**6 for data in found.values())
    fuzz(from_file(tmp_path / "a.zip", read_all, tmp_path / "a.zip"), file.getvalue(), DataError, right)

def tar_bytes():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as t:
        for name in ("a/x.txt", "b/" + "y" * 120 + ".txt"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 30, {"comment": "none", "mtime": "1.5"}
            t.addfile(info, io.BytesIO(b"z" * 30))
    return file.getvalue()[:8192]

def test_tars(tmp_path):
    fuzz(from_file(tmp_path / "a.tar", read_all, tmp_path / "a.tar"), tar_bytes(), DataError)

def test_compressed_tars(tmp_path):
    def read(data):
        shutil.rmtree(tmp_path / "a.unpacked", ignore_errors=True)
        (tmp_path / "a.tgz").write_bytes(gzip.compress(data, 0))
        return read_all(tmp_path / "a.tgz")
    fuzz(read, tar_bytes(), DataError, cases=2000)  # the reader of tars again, and its files on a disk
    def read_damaged(data):
        shutil.rmtree(tmp_path / "a.unpacked", ignore_errors=True)
        (tmp_path / "a.tgz").write_bytes(data)
        return read_all(tmp_path / "a.tgz")
    for packed in (gzip.compress(tar_bytes()), lzma.compress(tar_bytes()), bz2.compress(tar_bytes())):
        fuzz(read_damaged, packed, DataError, cases=1000)
    assert {p.name for p in tmp_path.iterdir()} <= {"a.tgz", "a.unpacked"}

@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_images(kind):
    whole = encoded(picture(size=(12, 9)), kind)
    fuzz(decode_image, whole, DataError, lambda image: image.mode == "RGB", cases=CASES // 7 + 1)  # 20,000 in all
