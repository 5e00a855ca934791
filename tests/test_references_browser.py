"""The exported page beside pictures of it that were judged to be right: light and dark, 1280 and 1920 pixels wide.

After a change that is meant: MDPROP_WRITE_REFERENCES=1 python -m pytest tests/test_references_browser.py, then look at the pictures.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from PIL import Image
from test_browser import arrays

from mdprop.dashboards import DensityDashboard

pytestmark = pytest.mark.browser

REFERENCES = Path(__file__).parent / "references"
WIDE = 480  # pixels of a kept picture
MOST_FAR = 0.01  # share of the picture
COARSE = 96  # pixels of the comparison: coarse enough for other fonts, fine enough for a panel that is missing or has another colour


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    shown = DensityDashboard(*arrays(), class_names=[f"class {c}" for c in range(12)], names=("plain", "mdprop"))
    shown.state.load({"class_filter": [1, 4, 7], "contours": "class"})
    shown.selection = range(0, 240, 12)
    return shown.save_html(tmp_path_factory.mktemp("page") / "density.html")


def coarse(picture: Image.Image, like: Image.Image) -> np.ndarray:
    "Both at the same small size, so that a line of text more or less does not count."
    return np.asarray(picture.convert("RGB").resize((COARSE, round(COARSE * like.height / like.width)), Image.Resampling.BOX), np.float32)


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_looks_as_it_did(page_path, browser, theme, width):
    context = browser.new_context(viewport={"width": width, "height": 1000}, offline=True, color_scheme=theme)
    page = context.new_page()
    page.goto(page_path.as_uri())
    page.wait_for_selector(".mdp-row")
    page.wait_for_function("document.querySelectorAll('.mdp-canvas').length === 3")
    page.wait_for_timeout(600)
    seen = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    context.close()
    kept = REFERENCES / f"density-{theme}-{width}.webp"
    if os.environ.get("MDPROP_WRITE_REFERENCES"):
        REFERENCES.mkdir(exist_ok=True)
        seen.convert("RGB").resize((WIDE, round(WIDE * seen.height / seen.width)), Image.Resampling.LANCZOS).save(kept, quality=70)
    reference = Image.open(kept)
    assert seen.height / seen.width == pytest.approx(reference.height / reference.width, rel=0.08)
    mean, share = far(coarse(seen, reference), coarse(reference, reference))
    assert mean < 4 and share < MOST_FAR, f"{mean:.1f} of 255 away on average, {share:.1%} far away: look at the page and at {kept.name}"


def far(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    "How far two pictures are apart on average (0 to 255), and the share that is far apart."
    away = np.abs(one - other).mean(axis=2)
    return float(away.mean()), float((away > 20).mean())


def test_another_theme_or_an_empty_panel_would_be_seen():
    light, dark = (Image.open(REFERENCES / f"density-{theme}-1280.webp").convert("RGB") for theme in ("light", "dark"))
    assert far(coarse(light, light), coarse(dark, light))[0] > 50
    empty = light.copy()
    empty.paste((255, 255, 255), (round(0.02 * light.width), round(0.27 * light.height), round(0.34 * light.width), round(0.47 * light.height)))
    assert far(coarse(light, light), coarse(empty, light))[1] > MOST_FAR
