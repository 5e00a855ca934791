"""Archives and images made to do harm, each built here, each refused by its name and with its reason, in little time and memory."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from made_images import encoded, picture
from PIL import Image
from scipy.io import savemat

from mdprop import archives as room
from mdprop import data as images
from mdprop.archives import BadArchiveError, DataError, FileSource, UnreadableFileError, UnsafeArchiveError, open_tree, read_matlab
from mdprop.data import Decoder, NotAnImageError, UnreadableImageError, decode_image, image_folder

PNG = encoded(picture())

@pytest.fixture(autouse=True)
def little_memory():
    "Whatever is refused here is refused before much memory has been asked for."
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6, f"{peak / 1e6:.0f} MB"

def zip_of(path, *members, method=zipfile.ZIP_STORED):
    "A zip of (name or ZipInfo, bytes)."
    with zipfile.ZipFile(path, "w", method) as z:
        for name, data in members: z.writestr(name, data)
    return path

def tar_of(path, *members, mode="w"):
    "A tar of (TarInfo or name, bytes)."
    with tarfile.open(path, mode) as t:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg(): info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path

def header(name="a/x.png", size=0, kind=tarfile.REGTYPE, size_field=None):
    "512 bytes of tar, the size field as one likes, the sum of the header right."
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    if size_field is not None: raw[124:136] = size_field
    raw[148:156] = b"%06o\0 " % (256 + sum(raw[:148]) + sum(raw[156:]))
    return bytes(raw)

def refused(path, reason, error=UnsafeArchiveError):
    "The archive is refused by this error, for this reason, as a tree and as a set; nothing stays beside it."
    before = sorted(path.parent.iterdir())
    for opened in (open_tree, image_folder):
        with pytest.raises(error, match=reason) as told: opened(path)
        assert path.name in str(told.value)
    assert sorted(path.parent.iterdir()) == before


# ---------------------------------------------------------------- names

NAMES = {
    "../x.png": "points outside", "a/../../x.png": "points outside", "/etc/x.png": "points outside", "//host/x.png": "points outside",
    "..\\x.png": "points outside", "C:\\x.png": "points outside", "C:x.png": "points outside", "a/C:/x.png": "points outside",
    "a\\..\\..\\x.png": "points outside", "\\\\host\\share\\x.png": "points outside",
    "a/\x07.png": "characters", "a/x\n.png": "characters", "a/\x7f.png": "characters",
    "a/" + "x" * 300 + ".png": "too long", "a/" * 1200 + "x.png": "too long",
}  # fmt: skip

@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_names(tmp_path, name):
    refused(zip_of(tmp_path / "evil.zip", (name, PNG)), NAMES[name])
    refused(tar_of(tmp_path / "evil.tar", (name, PNG)), NAMES[name])
    refused(tar_of(tmp_path / "evil.tgz", (name, PNG), mode="w:gz"), NAMES[name])

def test_a_name_behind_a_nul_and_one_that_is_no_unicode(tmp_path):
    path = zip_of(tmp_path / "evil.zip", ("a/x.pngQ../../y", PNG))
    path.write_bytes(path.read_bytes().replace(b"Q../..", b"\0../.."))
    refused(path, "characters")
    info = tarfile.TarInfo("a/\udcff\udcfe.png")
    refused(tar_of(tmp_path / "evil.tar", (info, PNG)), "characters")

@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice(tmp_path):
    twice, both = [("a/x.png", PNG), ("a/x.png", b"other")], [("a/x.png", PNG), ("a/x.png/y.png", PNG)]
    for members, reason in ((twice, "there twice"), (both, "a file and a folder")):
        refused(zip_of(tmp_path / "evil.zip", *members), reason)
        refused(tar_of(tmp_path / "evil.tar", *members), reason)
    refused(tar_of(tmp_path / "evil.tgz", *twice, mode="w:gz"), "there twice")
    refused(tar_of(tmp_path / "other.tgz", *both, mode="w:gz"), "a file and a folder|cannot be", BadArchiveError)
    refused(zip_of(tmp_path / "slashes.zip", ("a/x.png", PNG), ("a\\x.png", b"other")), "there twice")


# ---------------------------------------------------------------- what is no file

@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, b"Z"])
def test_links_and_devices_in_a_tar(tmp_path, kind, mode):
    info = tarfile.TarInfo("a/x.png")
    info.type, info.linkname = kind, "../../etc/passwd"
    if kind == tarfile.CONTTYPE:  # "like a regular file": whatever it holds is bytes
        assert open_tree(tar_of(tmp_path / "a.tar", (info, b"abc"), mode=mode)).files["a/x.png"].read() == b"abc"
    else: refused(tar_of(tmp_path / "evil.tar", (info, b""), mode=mode), "a link or a device")

@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(tmp_path, kind):
    info = zipfile.ZipInfo("a/x.png")
    info.external_attr = (kind | 0o644) << 16
    refused(zip_of(tmp_path / "evil.zip", (info, "/etc/passwd")), "a link or a device")

def test_sparse_files(tmp_path):
    pax = tarfile.TarInfo("a/x.png")
    pax.pax_headers = {"GNU.sparse.size": "1000000000000", "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
    refused(tar_of(tmp_path / "evil.tar", (pax, b"x")), "a link or a device")
    (tmp_path / "old.tar").write_bytes(header(kind=tarfile.GNUTYPE_SPARSE) + bytes(1024))
    refused(tmp_path / "old.tar", "a link or a device|damaged", BadArchiveError)

def test_pipes_and_devices_in_a_folder_are_not_opened(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "photos" / "a" / "pipe.png")
    with pytest.raises(UnreadableFileError, match=r"pipe\.png: a device, a pipe or a folder"): image_folder(tmp_path / "photos").batch([0])
    with pytest.raises(UnreadableFileError, match="a device"): FileSource("/dev/zero", "zero").read()
    with pytest.raises(BadArchiveError, match="a device or a pipe"): open_tree(tmp_path / "photos" / "a" / "pipe.png")


# ---------------------------------------------------------------- bombs

@pytest.mark.parametrize(("ending", "pack"), [("tgz", gzip.compress), ("tar.bz2", bz2.compress), ("tar.xz", lzma.compress)])
def test_zeros_without_end(tmp_path, ending, pack):
    path = tmp_path / f"bomb.{ending}"
    path.write_bytes(pack(header(size=100_000_000)) + 9 * pack(bytes(10**7)) + pack(bytes(10**7 + 1024 * 100)))
    refused(path, "a bomb: it unpacks to more than 67,108,864 bytes")

def test_zeros_that_no_member_owns(tmp_path):
    (tmp_path / "bomb.tgz").write_bytes(gzip.compress(header(size=0)) + 10 * gzip.compress(bytes(10**7)))
    assert list(open_tree(tmp_path / "bomb.tgz").files) == ["a/x.png"]  # an end mark: what follows is not read
    hidden = header("././@PaxHeader", 3 * 2**26, tarfile.XHDTYPE)  # a heading of 200 MB, which Python would read in one piece
    (tmp_path / "pax.tgz").write_bytes(gzip.compress(hidden) + 20 * gzip.compress(bytes(10**7)))
    refused(tmp_path / "pax.tgz", r"a heading claims to have 201,326,592 bytes")
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
        (tmp_path / "long.tar").write_bytes(header("././@LongLink", 8**11 - 1, kind) + bytes(2048))
        refused(tmp_path / "long.tar", "a heading claims")

def test_many_members(tmp_path, monkeypatch):
    members = [(f"a/{i}", b"") for i in range(101)]
    monkeypatch.setattr(room, "MAX_MEMBERS", 100)
    refused(zip_of(tmp_path / "bomb.zip", *members), "more than 100 members")
    for mode in ("w", "w:gz"): refused(tar_of(tmp_path / f"{len(mode)}.tar", *members, mode=mode), "more than 100 members")
    monkeypatch.setattr(room, "_AT_ONCE", 2000)  # the directory alone is too long, whatever it says of its length
    refused(zip_of(tmp_path / "long.zip", *members[:90]), r"claims to have [\d,]+ bytes|has more than 2,000 bytes")

def test_a_directory_that_claims_gigabytes(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("a/x.png", PNG))
    raw = bytearray(path.read_bytes())
    raw[-10:-6] = struct.pack("<I", 2**31)  # the length of the directory, in the end record
    path.write_bytes(raw)
    refused(path, "claims to have|damaged", BadArchiveError)

def overlapping(path, files=50):
    "As David Fifield's bomb: every entry of the directory points at the same bytes."
    one = zip_of(path.with_suffix(".one"), ("a/x.png", bytes(10**6)), method=zipfile.ZIP_DEFLATED)
    raw = one.read_bytes()
    one.unlink()
    start = raw.index(b"PK\1\2")
    end = raw.index(b"PK\5\6")
    entries = b"".join(raw[start:end].replace(b"a/x.png", b"a/%03d.p" % i) for i in range(files))
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, files, files, len(entries), start, 0)
    path.write_bytes(raw[:start] + entries + tail)
    return path

def test_entries_that_share_their_bytes(tmp_path):
    refused(overlapping(tmp_path / "bomb.zip"), "overlaps")

def test_an_archive_in_an_archive_is_never_opened(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", ("b/y.png", PNG)).read_bytes()
    for path in (zip_of(tmp_path / "outer.zip", ("a/inner.zip", inner)), tar_of(tmp_path / "outer.tgz", ("a/inner.zip", inner), mode="w:gz")):
        assert list(open_tree(path).files) == ["a/inner.zip"]
        with pytest.raises(NotAnImageError, match=r"inner\.zip: no image|inner\.zip in .*: no image"): image_folder(path)


# ---------------------------------------------------------------- sizes that are lies

def changed(path, mark, offset, value):
    "The archive with some bytes behind its last `mark` changed."
    raw = bytearray(path.read_bytes())
    at = raw.rindex(mark) + offset
    raw[at:at + len(value)] = value
    path.write_bytes(raw)
    return path

def test_a_zip_that_lies_about_sizes(tmp_path):
    def fresh(): return zip_of(tmp_path / "liar.zip", ("a/x.png", bytes(5000)), method=zipfile.ZIP_DEFLATED)
    refused(changed(fresh(), b"PK\1\2", 24, struct.pack("<I", 2**31)), "too many for an image", BadArchiveError)
    refused(changed(fresh(), b"PK\1\2", 20, struct.pack("<I", 2**27)), "overlaps")
    for mark, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22), (b"PK\3\4", 18), (b"PK\3\4", 14)):  # either header: size, stored size, checksum
        tree = open_tree(changed(fresh(), mark, offset, struct.pack("<I", 77)))
        with pytest.raises(UnsafeArchiveError, match=r"a/x\.png in .*disagree about its size"): tree.files["a/x.png"].read()
    tree = open_tree(changed(fresh(), b"PK\3\4", 8, struct.pack("<H", 0)))  # packed in one header, plain in the other
    with pytest.raises(UnsafeArchiveError, match="disagree"): tree.files["a/x.png"].read()
    both = changed(changed(fresh(), b"PK\1\2", 24, struct.pack("<I", 100)), b"PK\3\4", 22, struct.pack("<I", 100))
    with pytest.raises(BadArchiveError, match="damaged"): open_tree(both).files["a/x.png"].read()  # unpacked no further than promised
    refused(changed(fresh(), b"PK\1\2", 42, struct.pack("<I", 2**31)), "overlaps|damaged", BadArchiveError)

@pytest.mark.parametrize("field", [b"\xff" * 12, b"\xff" * 11 + b"\x00", b"\x80" + b"\x7f" * 11, b"-0000000777\0", b"77777777777\0"], ids=repr)
def test_a_tar_that_lies_about_sizes(tmp_path, field):
    raw = header(size_field=field) + bytes(4096)
    (tmp_path / "liar.tar").write_bytes(raw)
    refused(tmp_path / "liar.tar", "negative size|too many for an image|cut short|damaged", BadArchiveError)
    (tmp_path / "liar.tgz").write_bytes(gzip.compress(raw))
    refused(tmp_path / "liar.tgz", "negative size|too many for an image|cut short|damaged|a bomb", BadArchiveError)

def test_headings_of_negative_length(tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):  # some Pythons read in circles
        (tmp_path / "liar.tar").write_bytes(header("x", kind=kind, size_field=b"\xff" * 11 + b"\x00") + bytes(4096))
        refused(tmp_path / "liar.tar", "heading claims|negative size|damaged|cut short", BadArchiveError)

def test_the_guard_never_goes_back_in_a_tar(tmp_path):
    stream = room._Guarded(io.BytesIO(bytes(2048)), tmp_path / "liar.tar", forward=True)
    assert len(stream.read(1024)) == 1024 and stream.seek(1500) == 1500
    with pytest.raises(UnsafeArchiveError, match="negative size"): stream.seek(0)
    with pytest.raises(UnsafeArchiveError, match="a heading claims"): stream.read(-512)


# ---------------------------------------------------------------- images

def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(width, height, depth=8, colour=2, data=b"\0" * 100):
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))

def test_a_billion_pixels(monkeypatch):
    claims = {
        "png": png(40_000, 25_000), "deep png": png(40_000, 25_000, 16), "long png": png(2**31 - 1, 1),
        "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0" + struct.pack("<HHB", 65535, 65535, 0) + b"\2\2L\1\0;",
        "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 40_000, 25_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6 40000 25000 255\n",
        "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1"
                 b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"),
    }
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # also where other code in this process has lifted Pillow's own limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for name, claim in claims.items():
            with pytest.raises(UnreadableImageError, match=f"{name}: too many pixels"): decode_image(claim, name=name)

def test_pixels_up_to_the_limit_are_not_refused():
    assert decode_image(encoded(Image.new("1", (8000, 8000)))).size == (8000, 8000)

def test_many_frames_are_one(tmp_path):
    frames = [Image.new("RGB", (200, 200), (i, 0, 0)) for i in range(30)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        image = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert image.size == (200, 200) and image.getpixel((0, 0))[0] < 3

@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)], ids=["wide", "tall"])
def test_a_line_of_pixels_does_not_grow(tmp_path, size):
    Image.new("L", size, 7).save(tmp_path / "line.png")
    pixels = Decoder(224)(FileSource(str(tmp_path / "line.png"), "line"))  # 256 x 15 million pixels if it were resized whole
    assert pixels.shape == (3, 224, 224) and pixels.unique().tolist() == [7]

def test_long_pictures_show_their_middle(tmp_path, monkeypatch):
    bands = np.tile(np.repeat(np.arange(200, dtype=np.uint8), 40), (40, 1))
    for name, pixels in (("wide", bands), ("tall", bands.T)): Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    def decoded(name): return Decoder(16)(FileSource(str(tmp_path / f"{name}.png"), name)).float()
    cut = {name: decoded(name) for name in ("wide", "tall")}
    monkeypatch.setattr(images, "_LONGEST", 10**6)
    for name, pixels in cut.items(): assert (pixels == decoded(name)).all() and 99 <= pixels.min() <= pixels.max() <= 101  # as if resized whole

def test_text_that_unpacks_to_gigabytes():
    bomb = zlib.compress(bytes(10**8))
    data = png(2, 2, data=b"\0" + bytes(6) + b"\0" + bytes(6))
    for text in (chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)):
        try: decode_image(data[:33] + text + data[33:])
        except UnreadableImageError: pass

def test_programs_that_draw_are_not_run(tmp_path):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(" + str(tmp_path / "was_run").encode() + b") (w) file closefile showpage\n"
    with pytest.raises(NotAnImageError, match="no image of a kind"): decode_image(program, name="a.eps")
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "x.eps").write_bytes(program)
    with pytest.raises(NotAnImageError, match=r"x\.eps"): image_folder(tmp_path / "photos")
    assert not (tmp_path / "was_run").exists()


# ---------------------------------------------------------------- MATLAB files

def matlab(tmp_path, value, **options):
    savemat(tmp_path / "a.mat", {"v": value}, **options)
    return (tmp_path / "a.mat").read_bytes()

def test_matlab_files_of_ill_will(tmp_path):
    cells = matlab(tmp_path, np.array(["a", "b"], object))
    numbers = matlab(tmp_path, np.arange(6.0).reshape(2, 3))
    shape = struct.pack("<II", 1, 2)
    nested = "x"
    for _ in range(40): nested = np.array([nested, 0], object)
    bomb = zlib.compress(struct.pack("<II", 14, 2**27) + bytes(2**27))
    for data, reason in (
        (cells.replace(shape, struct.pack("<II", 1, 2**31 - 1)), "2,147,483,647 entries in"),
        (cells.replace(shape, struct.pack("<ii", 1, -2)), "no shape"),
        (numbers.replace(struct.pack("<II", 2, 3), struct.pack("<II", 2**20, 2**20)), "entries in"),
        (numbers.replace(struct.pack("<II", 2, 3), struct.pack("<II", 1, 3)), "6 numbers at byte .* not 3"),
        (matlab(tmp_path, nested), "too many inside of each other"),
        (cells[:128] + struct.pack("<II", 15, len(bomb)) + bomb, "more than 67,108,864 bytes"),
        (cells[:-20], "more than there are|in the middle"),
        (cells[:140], "more than there are"), (b"", "no MATLAB 5 file"), (b"MATLAB 7.3 MAT-file" + bytes(600), "no MATLAB 5 file"),
        (matlab(tmp_path, np.array([1j])), "only text, real numbers"),
    ):
        with pytest.raises(UnreadableFileError, match=f"a.mat: cannot be read as a MATLAB 5 file .*({reason})"): read_matlab(data, ["f"], "a.mat")

def test_matlab_files_of_good_will(tmp_path):
    for value in (3, 2.5, "text", "Bjørn – ü", [1, 2, 3], np.array(["a", "bc"], object)):
        for compressed in (False, True):
            found = read_matlab(matlab(tmp_path, value, do_compression=compressed), [])["v"]
            assert list(found) == list(value) if np.ndim(value) else found == value
    rows = np.array([("n1", 1, 9), ("n2", 2, 9)], dtype=[("name", object), ("class", object), ("other", object)])
    assert read_matlab(matlab(tmp_path, rows), ["name", "class"])["v"] == [{"name": "n1", "class": 1}, {"name": "n2", "class": 2}]

def test_every_error_here_is_a_value_error(tmp_path):
    assert issubclass(DataError, ValueError) and issubclass(UnsafeArchiveError, BadArchiveError) and issubclass(UnreadableImageError, DataError)
