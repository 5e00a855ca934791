"""What all tests share: seeds, one thread, the real images, and a torchvision that can be imported."""

import io
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
IN_CI = bool(os.environ.get("CI"))

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mdprop-tests-")  # layouts that tests make are not the user's

hypothesis.settings.register_profile("mdprop", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("mdprop")


def declare_torchvision_operators() -> torch.library.Library | None:
    """Let `import torchvision` (and so timm) work where its compiled operators cannot be loaded.

    The wheels on PyPI for Linux need CUDA libraries. Beside a CPU build of torch the operators stay unregistered, and the
    import stops at `operator torchvision::nms does not exist`. timm's backbones call none of them, so that declaring the
    two which torchvision describes at import is enough. Where the operators load, nothing is declared. The declarations live as
    long as the object that is returned.
    """
    spec = find_spec("torchvision")
    compiled = sorted(Path(spec.submodule_search_locations[0]).glob("_C*")) if spec and spec.submodule_search_locations else []
    if not compiled:
        return None
    try:
        torch.ops.load_library(str(compiled[0]))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


TORCHVISION_OPERATORS = declare_torchvision_operators()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for `real_data`, so that `-m 'not real'` leaves them out; and say what stays together where two processes share the tests.

    The files with a browser are one group, so that no two browsers wait for each other; every other file is a group of its own and keeps its fixtures.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("browser" if "browser" in item.path.stem else item.path.stem))
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("real")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module or a session are made
def pytest_runtest_setup() -> None:
    "Every test starts from the same random state and number of threads, alone or among others."
    torch.set_num_threads(1)  # sums keep their order; each time, because UMAP may leave as many as there are cores
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries that we call still use the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder of real images: MDPROP_TEST_DATA, or `shared/data` beside the repository."
    named = os.environ.get("MDPROP_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if named and not folder.is_dir():
        pytest.fail(f"MDPROP_TEST_DATA names {named}, which is no folder")
    if not folder.is_dir():
        pytest.skip("no real images here: let MDPROP_TEST_DATA name their folder")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    "A headless browser, one for all tests of a file."
    from browser import open_browser

    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "What `mdprop demo` leaves behind after one epoch: two runs, the page, and what it printed (printed.txt)."
    pytest.importorskip("anywidget", reason="needs the extra lab")
    from mdprop.cli import demo

    folder = tmp_path_factory.mktemp("demo") / "demo"
    with redirect_stdout(io.StringIO()) as printed:
        demo(folder, epochs=1, progress=False)
    (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")
    return folder
