"All dashboards of two runs as Voila serves them: every tab, the state on both sides, the token, and nothing that tells where the runs lie."

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from browser import Complaints, end_group, ink
from test_dashboards_every import folder  # noqa: F401 - a fixture

from mdprop.dashboards.serve import voila_server

pytestmark = pytest.mark.browser

SHOWN = {
    "Neighbours": ".mdp-tile:visible", "Attack": "text=Distance to the targets", "Training": ".js-plotly-plot:visible", "Norms": ".js-plotly-plot:visible",
    "Robustness": "text=mdprop robustness",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(folder):  # noqa: F811
    "A server that answers: (its process, the address with its token)."
    with voila_server([folder / "plain", folder / "mdprop"], open_browser=False, quiet=True) as (process, address):
        until, bare = time.monotonic() + 60, address.partition("?")[0]
        while True:
            try:
                assert "/login?" in urlopen(bare, timeout=30).url
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "Voila does not answer"
                time.sleep(0.3)
        yield process, address


def test_every_dashboard_through_voila(served, folder, browser):  # noqa: F811
    process, address = served
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints, received = Complaints(page), []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(frame if isinstance(frame, bytes) else frame.encode())))
    page.goto(address, timeout=120_000)
    page.wait_for_selector(".mdp-row", timeout=120_000)
    full = ink(page, 0)
    page.locator(".mdp-row").first.click()
    page.wait_for_selector(".mdp-chip")
    assert ink(page, 0) != full
    for tab, sign in SHOWN.items():
        page.get_by_role("tab", name=tab).click()
        page.locator(sign).first.wait_for(timeout=60_000)
        assert page.get_by_text(f"{tab} cannot be shown").count() == 0
    page.get_by_role("tab", name="Density").click()
    assert page.locator(".mdp-chip").count() == 1  # as it was left
    assert complaints.found == []
    secret = folder.parent.name  # the folder of this test run: part of every absolute path, and of every way to it from another place
    assert received and not [frame[:200] for frame in received if secret.encode() in frame]
    assert secret not in page.content()
    page.close()
    assert process.poll() is None


# Nobody else is let in


def listening(port: int) -> set[str]:
    "Addresses of this machine at which somebody listens on a port, as /proc/net tells them."
    found = set()
    for name in ("tcp", "tcp6"):
        table = Path("/proc/net") / name
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in (row.split() for row in rows):
            address, _, at = fields[1].partition(":")
            if fields[3] == "0A" and int(at, 16) == port:
                found.add(address)
    return found


LOOPBACK = "0100007F"


def refused(address: str) -> bool:
    "Whether the server asks for a token: 401 or 403, or the page that asks for it."
    try:
        with urlopen(address, timeout=30) as answer:
            return "/login" in answer.url
    except HTTPError as error:
        return error.code in (401, 403)


def socket_status(address: str) -> int:
    "What the server answers to a websocket; 101: it lets it in."
    import websocket

    try:
        websocket.create_connection(address, timeout=30).close()
    except websocket.WebSocketBadStatusException as error:
        return error.status_code
    return 101


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")
def test_no_server_stays_behind_a_command_that_is_ended(folder):  # noqa: F811
    command = [sys.executable, "-u", "-m", "mdprop.cli", "dashboard", str(folder / "plain"), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as served:
        try:
            port = int(re.search(r":(\d+)/", served.stdout.readline())[1])
            until = time.monotonic() + 90
            while not listening(port):
                assert served.poll() is None and time.monotonic() < until
                time.sleep(0.2)
            served.terminate()  # to the command alone, as service managers do
            served.wait(30)
            assert not listening(port)
        finally:
            end_group(served)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")
def test_voila_listens_on_loopback_and_wants_its_token(served):
    _, address = served
    bare, token = address.split("?token=")
    assert listening(urlparse(address).port) == {LOOPBACK}
    assert not refused(address)
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    for place in ("", "voila/tree", "api/kernels/00000000-0000-0000-0000-000000000000", "static/../etc/passwd"):
        assert refused(f"{bare}{place}") and refused(f"{bare}{place}?token={wrong}") and refused(f"{bare}{place}?token="), place
    with urlopen(address, timeout=120) as page:
        kernel = re.search(r'"kernelId": ?"([0-9a-f-]+)"', page.read().decode())
    assert kernel, "the page names its kernel"
    channels = f"{bare.replace('http', 'ws')}api/kernels/{kernel[1]}/channels"
    assert socket_status(f"{channels}?token={token}") == 101
    assert socket_status(channels) in (401, 403) and socket_status(f"{channels}?token={wrong}") in (401, 403)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")
def test_mdprop_lab_listens_on_loopback_and_wants_a_token(tmp_path, monkeypatch):
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("JUPYTER_ALLOW_INSECURE_WRITES", "1")
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    config = tmp_path / "home" / "JUPYTER_CONFIG_DIR" / "jupyter_server_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"ServerApp": {"allow_root": True}}))
    (tmp_path / "work").mkdir()
    with open(tmp_path / "log.txt", "w") as log:
        command = [sys.executable, "-m", "mdprop.cli", "lab", str(tmp_path / "work"), "--no-browser"]
        lab = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not (found := re.search(r"http://(127\.0\.0\.1:\d+)/\S*\?token=(\w+)", (tmp_path / "log.txt").read_text())):
            assert lab.poll() is None and time.monotonic() < until, (tmp_path / "log.txt").read_text()[-2000:]
            time.sleep(0.3)
        host, token = found[1], found[2]
        assert len(token) >= 32 and listening(int(host.rpartition(":")[2])) == {LOOPBACK}
        for place in ("lab", "api/contents", "api/kernels", "files/mdprop.ipynb"):
            assert refused(f"http://{host}/{place}") and refused(f"http://{host}/{place}?token={'0' * 32}"), place
        assert socket_status(f"ws://{host}/api/events/subscribe") in (401, 403)
        assert not refused(f"http://{host}/api/contents?token={token}")
    finally:
        end_group(lab)
