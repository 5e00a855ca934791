"A real Chromium, a real JupyterLab, and what both complain about: fixtures for the browser tests."

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest

FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


def chromium() -> str:
    "Path of an installed Chromium or Chrome. Without one the test is skipped; in CI it fails."
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    missing = "no chromium on the path: apt-get install chromium"
    return pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@contextmanager
def open_browser() -> Iterator:
    "A headless browser that is closed afterwards."
    path = chromium()
    if not os.environ.get("CI"):
        pytest.importorskip("playwright", reason="pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Complaints:
    "Console errors, page errors and requests that leave this machine."

    def __init__(self, page):
        self.found: list[str] = []
        page.on("console", lambda message: self.found.append(f"console: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: self.found.append(f"page: {error}"))
        page.on("request", self.check_request)

    def check_request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")):
            self.found.append(f"request: {request.url}")


def ink(page, panel: int) -> str:
    "What a panel shows, as the data URL of its canvas."
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".mdp-canvas").nth(panel).evaluate("canvas => canvas.toDataURL()")


@contextmanager
def jupyter_lab(folder: Path, threads: int = 1, notebook: dict | None = None, widgets: dict | None = None) -> Iterator[tuple[str, str]]:
    "JupyterLab on the notebooks of `folder` with settings of its own (`notebook`, `widgets`: further ones), on loopback with a token: (address, token)."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), folder / "home"
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    env = os.environ | {name: str(home / name) for name in places} | {"OMP_NUM_THREADS": str(threads)}
    settings = {
        "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/notebook-extension/tracker": {"autoStartDefault": True} | (notebook or {}),
        "@jupyter-widgets/jupyterlab-manager/plugin": widgets or {},
    }
    for name, value in settings.items():
        path = home / "JUPYTERLAB_SETTINGS_DIR" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with open(folder / "jupyter.log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{address}/api?token={token}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, (folder / "jupyter.log").read_text()[-2000:]
                time.sleep(0.2)
        yield address, token
    finally:
        end_group(server)


def end_group(process: subprocess.Popen) -> None:
    "End a process that has a group of its own, and what it has started."
    with suppress(ProcessLookupError):  # it has ended, and so have those
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def write_notebook(path: Path, sources: Sequence[str]) -> None:
    "A notebook with these cells of code."
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def open_notebook(page, address: str, token: str, name: str) -> None:
    "Open a notebook and wait until its kernel answers."
    page.goto(f"{address}/doc/tree/{name}?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)


def run_all_cells(page) -> None:
    "Start all cells; does not wait for them."
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def ask_kernel(page, code: str) -> str:
    "What `code` prints in the notebook's kernel."
    return page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            let printed = '';
            const future = kernel.requestExecute({ code, store_history: false });
            future.onIOPub = (message) => { printed += message.content.text ?? (message.content.evalue ? 'error: ' + message.content.evalue : ''); };
            await future.done;
            return printed.trim();
        }""",
        code,
    )


def wait_for_kernel(page, code: str, printed: str) -> None:
    "Wait until `code` prints this: widget messages are throttled, so a click may reach Python a little later."
    until = time.monotonic() + 60
    while (got := ask_kernel(page, code)) != printed:
        assert time.monotonic() < until, f"{code} printed {got!r}, not {printed!r}"
        page.wait_for_timeout(100)
