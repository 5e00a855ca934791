"""Archives and downloads: what is damaged, cut short or of another kind, and a server that does everything a server may do wrong."""

import hashlib
import http.client
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from made_images import encoded, photos, picture, tarred, zipped

from mdprop import archives as room
from mdprop.archives import (
    ARCHIVES,
    PUBLISHED,
    BadArchiveError,
    ChecksumError,
    DownloadError,
    FileSource,
    MissingDataError,
    UnreadableFileError,
    UnsafeArchiveError,
    check_archive,
    download,
    fetch,
    open_tree,
)
from mdprop.data import image_folder

# ---------------------------------------------------------------- archives of ill luck, and the plainest of ill will

@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "C:\\x.png", "\\\\host\\x.png"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_paths_that_climb_out(tmp_path, name, kind):
    path = tmp_path / "box" / f"evil.{kind}"
    path.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as z: z.writestr(name, encoded(picture()))
    else:
        with tarfile.open(path, "w" if kind == "tar" else "w:gz") as t:
            member = tarfile.TarInfo(name)
            member.size = 3
            t.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(UnsafeArchiveError, match=r"evil\.\w+: member .* points outside"): open_tree(path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name] and len(list(path.parent.iterdir())) == 1

@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind, mode):
    with tarfile.open(tmp_path / "evil.tar", mode) as t:
        member = tarfile.TarInfo("a/x.png")
        member.type, member.linkname = kind, "/etc/passwd"
        t.addfile(member)
    with pytest.raises(UnsafeArchiveError, match=r"evil\.tar: member 'a/x\.png' is a link or a device"): open_tree(tmp_path / "evil.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]

def test_links_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("a/x.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as z: z.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="is a link"): open_tree(tmp_path / "evil.zip")

def test_archives_cut_short_or_of_another_kind(tmp_path):
    root = photos(tmp_path / "photos", 4, 6)
    modes = {"a.zip": "", "a.tar": "w", "a.tgz": "w:gz", "b.tar.xz": "w:xz", "c.tar.bz2": "w:bz2"}
    for name, mode in modes.items():
        path = tarred(root, tmp_path / name, mode=mode) if mode else zipped(root, tmp_path / name)
        whole = path.read_bytes()
        for kept in (len(whole) // 2, len(whole) // 2 // 512 * 512, 512, 100):
            path.write_bytes(whole[:kept])
            with pytest.raises(BadArchiveError, match=f"{name}.*download it again"): open_tree(path)
    (tmp_path / "page.tgz").write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(BadArchiveError, match=r"page\.tgz: neither a zip nor a tar"): open_tree(tmp_path / "page.tgz")
    (tmp_path / "empty.zip").write_bytes(b"")
    with pytest.raises(BadArchiveError): open_tree(tmp_path / "empty.zip")
    assert not list(tmp_path.glob("*.unpacked")) and not list(tmp_path.glob(".*"))

def test_a_flipped_byte_in_a_zip_is_told(tmp_path):
    path = zipped(photos(tmp_path / "photos", 1, 1), tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    for i in range(60, 400): raw[i] ^= 0xFF
    tree = open_tree(path)
    path.write_bytes(raw)
    with pytest.raises(BadArchiveError, match=r"bird0/0\.png in .*a\.zip: (damaged|not there)"): tree.files["bird0/0.png"].read()
    path.write_bytes(b"\0" * len(raw))
    with pytest.raises(BadArchiveError, match="has the archive changed"): tree.files["bird0/0.png"].read()

def test_a_member_that_inflates_beyond_its_promise_is_stopped(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("x", b"\0" * 10**6)
    source = open_tree(tmp_path / "a.zip").files["x"]
    bomb = FileSource(source.path, "x", source.offset, source.stored, 1000, source.packing, source.crc)
    with pytest.raises(UnsafeArchiveError, match="disagree about its size"): bomb.read()
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[22:26] = (1000).to_bytes(4, "little")  # the file's own header tells the same lie
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(BadArchiveError, match="damaged"): bomb.read()

def test_size_limits(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos", 2, 2)
    z, tgz = zipped(root, tmp_path / "a.zip"), tarred(root, tmp_path / "a.tgz", mode="w:gz")
    monkeypatch.setattr(room, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadArchiveError, match="too many for an image"): open_tree(z)
    with pytest.raises(UnreadableFileError, match="more than 100 bytes"): image_folder(root).batch([0])
    with pytest.raises(BadArchiveError, match="too many for an image"): open_tree(tgz)
    monkeypatch.setattr(room, "MAX_FILE_BYTES", 2**28)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BadArchiveError, match="make room"): open_tree(tgz)
    assert not (tmp_path / "a.unpacked").exists() and not list(tmp_path.glob(".*"))

def test_encrypted_or_unusual_zips_say_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as z: z.writestr("a/x.png", encoded(picture()))
    with pytest.raises(BadArchiveError, match="unpack it and give the folder"): open_tree(tmp_path / "a.zip")

def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_): raise PermissionError(13, "Permission denied")
    tgz = tarred(photos(tmp_path / "photos", 1, 1), tmp_path / "a.tgz", mode="w:gz")
    monkeypatch.setattr(room.tempfile, "mkdtemp", refuse)
    with pytest.raises(BadArchiveError, match=r"Permission denied.*Unpack it elsewhere"): open_tree(tgz)

def test_several_may_unpack_at_once(tmp_path):
    tgz = tarred(photos(tmp_path / "photos", 4, 6), tmp_path / "a.tgz", mode="w:gz")
    with ThreadPoolExecutor(4) as pool: trees = list(pool.map(open_tree, [tgz] * 4))
    assert [len(tree.files) for tree in trees] == [24] * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz", "a.unpacked", "photos"]

def test_checksums(tmp_path):
    path = zipped(photos(tmp_path / "photos", 1, 1), tmp_path / "images_evaluation.zip")
    with pytest.raises(ChecksumError, match=r"images_evaluation\.zip: its sha256 is .*download it again"): check_archive(path)
    content = path.read_bytes()
    check_archive(path, "sha256:" + hashlib.sha256(content).hexdigest())
    check_archive(path, "md5:" + hashlib.md5(content).hexdigest().upper())
    with pytest.raises(ChecksumError, match="its md5 is"): check_archive(path, "md5:" + "0" * 32)
    with pytest.raises(ChecksumError, match="give one"): check_archive(path, "crc:0")
    with pytest.raises(ChecksumError, match="no published checksum"): check_archive(path.rename(tmp_path / "own.zip"))
    with pytest.raises(MissingDataError, match="not to a folder"): check_archive(tmp_path, "md5:0")


# ---------------------------------------------------------------- downloads

CONTENT = os.urandom(150_000)
RIGHT = "sha256:" + hashlib.sha256(CONTENT).hexdigest()

class Server(BaseHTTPRequestHandler):
    "Serves CONTENT; `how` says what it does wrong."
    how: SimpleNamespace
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        how, asked = self.server.how, self.headers.get("Range")
        how.asked.append((self.path, asked, self.headers.get("If-Range")))
        self.close_connection = True
        if self.path in how.redirects: return self.head(302, Location=how.redirects[self.path])
        if how.statuses: return self.head(how.statuses.pop(0))
        start = int(asked[6:-1]) if asked and how.ranges and self.headers.get("If-Range", how.etag) == how.etag else 0
        if start >= len(CONTENT): return self.head(416, Content_Range=f"bytes */{len(CONTENT)}")
        known = {"Content_Length": len(CONTENT) - start + how.lie} if how.length else {}
        if start: known["Content_Range"] = f"bytes {start + how.shift}-{len(CONTENT) - 1}/{len(CONTENT)}"
        self.head(206 if start else 200, ETag=how.etag, **known, **how.headers)
        rest = CONTENT[start:] + b"x" * how.extra
        self.wfile.write(rest[:how.cut] if how.cut else rest)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            if value: self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args): pass

@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(room.time, "sleep", lambda seconds: None)
    how = SimpleNamespace(asked=[], redirects={}, statuses=[], ranges=True, etag='"v1"', length=True, lie=0, shift=0, extra=0, cut=0, headers={})
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.how, running.daemon_threads = how, True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        how.url = f"http://127.0.0.1:{running.server_port}/a/photos.zip"
        yield how
        running.shutdown()

def get(server, path, checksum=RIGHT, **options):
    return download(server.url, path, checksum, **{"private": True, "progress": False, **options})

def ranges(server): return [asked for _, asked, _ in server.asked]

def test_a_download_that_works(server, tmp_path):
    assert get(server, tmp_path) == tmp_path / "photos.zip"
    assert (tmp_path / "photos.zip").read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1
    assert get(server, tmp_path / "photos.zip") and len(server.asked) == 1  # what is there is checked, not fetched
    (tmp_path / "photos.zip").write_bytes(b"mine")
    with pytest.raises(ChecksumError, match="download it again"): get(server, tmp_path)
    assert (tmp_path / "photos.zip").read_bytes() == b"mine"  # the user's own file is left alone
    assert get(server, tmp_path / "new" / "b.zip", "md5:" + hashlib.md5(CONTENT).hexdigest(), size=len(CONTENT)).read_bytes() == CONTENT

def test_a_cut_line_is_continued(server, tmp_path):
    server.cut = 40_000
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=40000-", "bytes=80000-", "bytes=120000-"] and {version for *_, version in server.asked[1:]} == {'"v1"'}

def test_a_later_call_goes_on_and_a_changed_file_starts_again(server, tmp_path):
    server.cut = 60_000
    with pytest.raises(DownloadError, match=r"cut after 60,000 of 150,000 bytes.*goes on from there"): get(server, tmp_path, attempts=1)
    assert (tmp_path / "photos.zip.part").stat().st_size == 60_000 and not (tmp_path / "photos.zip").exists()
    server.cut, server.etag, server.asked = 0, '"v2"', []
    assert get(server, tmp_path).read_bytes() == CONTENT  # If-Range did not match: the whole file came
    assert server.asked == [("/a/photos.zip", "bytes=60000-", '"v1"')]

def test_a_piece_of_another_address_or_without_a_note_is_not_continued(server, tmp_path):
    for note in (None, "{", "[]", json.dumps({"url": "https://elsewhere.org", "version": '"v1"'}), json.dumps({"url": server.url, "version": 3})):
        (tmp_path / "photos.zip.part").write_bytes(b"y" * 1000)
        if note: (tmp_path / "photos.zip.part.json").write_text(note)
        server.asked.clear()
        assert get(server, tmp_path).read_bytes() == CONTENT and ranges(server) == [None]
        (tmp_path / "photos.zip").unlink()

@pytest.mark.parametrize("fault", ["no ranges", "another piece", "no version", "weak version", "no length"])
def test_servers_that_cannot_continue(server, tmp_path, fault):
    server.cut = 60_000
    if fault == "no ranges": server.ranges = False
    if fault == "another piece": server.shift = 1
    if fault == "no version": server.etag = ""
    if fault == "weak version": server.etag = 'W/"v1"'
    if fault == "no length": server.length = False
    with pytest.raises(ChecksumError if fault == "no length" else DownloadError): get(server, tmp_path, attempts=1)
    server.cut = 0
    assert get(server, tmp_path).read_bytes() == CONTENT and (tmp_path / "photos.zip").stat().st_size == len(CONTENT)
    assert (len(server.asked), ranges(server)[1]) == {"no ranges": (2, "bytes=60000-"), "another piece": (3, "bytes=60000-")}.get(fault, (2, None))

def test_a_piece_that_is_whole_already(server, tmp_path):
    server.cut = 149_999
    with pytest.raises(DownloadError): get(server, tmp_path, attempts=1)
    (tmp_path / "photos.zip.part").write_bytes(CONTENT)  # as after a stop between the last byte and the new name
    server.asked = []
    assert get(server, tmp_path).read_bytes() == CONTENT and ranges(server) == ["bytes=150000-"]

def test_busy_servers_are_asked_again_and_missing_files_are_not(server, tmp_path):
    server.statuses = [503, 500, 429]
    assert get(server, tmp_path).read_bytes() == CONTENT and len(server.asked) == 4
    server.statuses, server.asked = [404], []
    with pytest.raises(DownloadError, match="answers 404 Not Found"): get(server, tmp_path / "b.zip")
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"cannot be had \(the server answers 503"): get(server, tmp_path / "b.zip", attempts=3)
    assert len(server.asked) == 4 and [p.name for p in tmp_path.iterdir()] == ["photos.zip"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="cannot be had"):
            download(f"http://127.0.0.1:{closed.getsockname()[1]}/x.zip", tmp_path, RIGHT, private=True, progress=False, attempts=2)

def test_what_is_wrong_in_the_end_leaves_nothing(server, tmp_path):
    with pytest.raises(ChecksumError, match="its sha256 is"): get(server, tmp_path, "sha256:" + "0" * 64)
    with pytest.raises(DownloadError, match="has 150,000 bytes, not 7: this is another file"): get(server, tmp_path, size=7)
    with pytest.raises(DownloadError, match="the limit is 1,000"): get(server, tmp_path, limit=1000)
    server.lie, server.cut = 10**12, 1
    with pytest.raises(DownloadError, match="has 1,000,000,150,000 bytes"): get(server, tmp_path)
    server.lie, server.cut, server.length, server.extra = 0, 0, False, 10**6  # says nothing, and does not stop
    with pytest.raises(DownloadError, match="or more, the limit is 200,000"): get(server, tmp_path, limit=200_000)
    with pytest.raises(DownloadError, match="or more, not 150,000"): get(server, tmp_path, size=150_000)
    server.length, server.extra, server.lie = True, 0, -1000  # says less than it has
    with pytest.raises(ChecksumError): get(server, tmp_path)
    server.lie, server.headers = 0, {"Content_Encoding": "gzip"}
    with pytest.raises(DownloadError, match="packs the file on the way"): get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_redirects(server, tmp_path):
    server.redirects = {"/a/photos.zip": "/b", "/b": server.url.replace("/a/photos.zip", "/c")}
    assert get(server, tmp_path).read_bytes() == CONTENT
    for target in ("file:///etc/hostname", "ftp://example.org/x", "data:text/plain,x", "gopher://x", "javascript:x"):
        server.redirects = {"/a/photos.zip": target}
        with pytest.raises(DownloadError, match="only https and http are read"): get(server, tmp_path / "x.zip")
    server.redirects = {"/a/photos.zip": "/a/photos.zip"}
    with pytest.raises(DownloadError, match="302"): get(server, tmp_path / "x.zip", attempts=1)
    assert [p.name for p in tmp_path.iterdir()] == ["photos.zip"]

def test_https_never_leads_to_http():
    request = room.urllib.request.Request("https://example.org/x.zip")
    for target in ("http://example.org/x.zip", "//example.org@1.2.3.4/", "HTTP://example.org/x"):
        try: answer = room._Redirects().http_error_302(request, io.BytesIO(), 302, "", http.client.HTTPMessage() if not target else {"location": target})
        except DownloadError as error: assert "redirects from https to http" in str(error) and target[:2] != "//"
        except AttributeError: assert target.startswith("//")  # same scheme: urllib goes on, to an opener that is not there
        else: raise AssertionError(answer)
    room._refuse_scheme("https://a.org/x", "http://a.org/x")  # the other way is a gain

@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_this_machine_is_private_under_every_name(server, tmp_path, host):
    url = server.url.replace("127.0.0.1", host)
    with pytest.raises(DownloadError, match=r"private address|cannot be had|cannot be asked"): download(url, tmp_path, RIGHT, progress=False, attempts=1)
    assert server.asked == [] and list(tmp_path.iterdir()) == []  # not one byte was asked for

def test_private_addresses():
    for address in ("10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "224.0.0.1", "::"):
        with pytest.raises(DownloadError, match="private address"): room._refuse_private(address, "x")
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"): room._refuse_private(address, "x")

def test_a_private_proxy_is_used_but_asked_for_public_addresses_only(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/a/photos.zip"))
    monkeypatch.setenv("no_proxy", "")
    assert download("http://example.org/a/photos.zip", tmp_path, RIGHT, progress=False).read_bytes() == CONTENT
    assert server.asked[0][0] == "http://example.org/a/photos.zip"
    for url in ("http://10.0.0.1/x.zip", "http://localhost/x.zip", "http://[fd00::1]/x.zip"):
        with pytest.raises(DownloadError, match="private address"): download(url, tmp_path, RIGHT, progress=False)
    assert len(server.asked) == 1

def test_something_must_say_what_should_come(tmp_path):
    with pytest.raises(DownloadError, match=r"Give checksum='sha256:\.\.\.', or the size"): download("https://example.org/x.zip", tmp_path)
    with pytest.raises(DownloadError, match=r"Give checksum='sha256:\.\.\.'$"): download("http://example.org/x.zip", tmp_path, size=7)
    for url in ("file:///etc/passwd", "ftp://cs.stanford.edu/x.zip", "x.zip", "", "http://[", "https://exa mple.org/x\n.zip"):
        with pytest.raises(DownloadError): download(url, tmp_path, RIGHT, progress=False, attempts=1)
    assert list(tmp_path.iterdir()) == []

def test_an_interrupted_download_goes_on(server, tmp_path, monkeypatch):
    class Impatient(room.tqdm):
        def update(self, n=1):
            if (received := self.n + n) and super().update(n) is not False and received > 100_000: raise KeyboardInterrupt
    monkeypatch.setattr(room, "tqdm", Impatient)
    monkeypatch.setattr(room._Fetch, "receive", _with_counting_bar(room._Fetch.receive))
    with pytest.raises(KeyboardInterrupt): get(server, tmp_path)
    held = (tmp_path / "photos.zip.part").stat().st_size
    assert 0 < held < len(CONTENT) and not (tmp_path / "photos.zip").exists()
    monkeypatch.undo()
    for name in ("http_proxy", "HTTP_PROXY"): monkeypatch.delenv(name, raising=False)
    assert get(server, tmp_path).read_bytes() == CONTENT and ranges(server)[-1] == f"bytes={held}-"

def _with_counting_bar(receive):
    "The bar counts although it is not shown."
    def patched(self, response, held):
        self.progress = True
        return receive(self, response, held)
    return patched

def test_two_processes_do_not_write_one_file(server, tmp_path):
    code = ("import sys, time\nfrom mdprop.archives import lock_file\n"
            "f = open(sys.argv[1], 'ab'); lock_file(f); print('held', flush=True); time.sleep(30)")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "photos.zip.part")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DownloadError, match="another process is downloading this"): get(server, tmp_path)
    finally:
        other.kill()
        other.wait()
    assert get(server, tmp_path).read_bytes() == CONTENT

def test_no_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match="needs 150,000 bytes, 1,000 are free"): get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- whole data sets

def test_what_is_listed():
    for name, published in PUBLISHED.items():
        kind, _, value = (published.checksum or "").partition(":")
        assert len(value) == {"sha256": 64, "md5": 32}[kind] and set(value) <= set("0123456789abcdef")
        assert not published.url or (published.url.endswith(name) and published.url.startswith(("https://", "http://")))
    assert all(archive in PUBLISHED for name, archives in ARCHIVES.items() if name != "inshop" for archive in archives)

def test_fetch_from_a_mirror(server, tmp_path, monkeypatch):
    for name in ARCHIVES["cars196"]: monkeypatch.setitem(PUBLISHED, name, room.Published("", RIGHT))
    with pytest.raises(DownloadError, match=r"closed since 2023.*mirror="): fetch("cars196", tmp_path)
    mirror = server.url.removesuffix("photos.zip")
    assert fetch("cars196", tmp_path / "cars", mirror, private=True, progress=False) == tmp_path / "cars"
    assert sorted(p.name for p in (tmp_path / "cars").iterdir()) == ["car_ims.tgz", "cars_annos.mat"]
    assert [path for path, *_ in server.asked] == ["/a/car_ims.tgz", "/a/cars_annos.mat"]
    with pytest.raises(DownloadError, match=r"by agreement.*img\.zip"): fetch("inshop", tmp_path, mirror)
    with pytest.raises(DownloadError, match="choose from omniglot, cub200"): fetch("imagenet", tmp_path)
