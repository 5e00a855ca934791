"All dashboards of two runs as Voila serves them: every tab, the state on both sides, the token, and no request that leaves the machine."

import time
from urllib.request import urlopen

import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from browser import Complaints, ink, open_browser

from mdprop.dashboards.serve import voila_server

pytestmark = pytest.mark.browser

SHOWN = {"Neighbours": ".mdp-tile:visible", "Training": ".js-plotly-plot:visible", "Norms": ".js-plotly-plot:visible", "Robustness": "text=mdprop robustness"}


def wait_for(address: str, process) -> str:
    "The first answer of the server: the address that it leads to."
    until = time.monotonic() + 60
    while True:
        try:
            with urlopen(address, timeout=30) as answer:
                return answer.url
        except OSError:
            assert process.poll() is None and time.monotonic() < until, "Voila does not answer"
            time.sleep(0.3)


def test_every_dashboard_through_voila(demo_folder):
    with voila_server([demo_folder / "plain", demo_folder / "mdprop"], open_browser=False, quiet=True) as (process, address), open_browser() as browser:
        assert "/login?" in wait_for(address.partition("?")[0], process)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        complaints = Complaints(page)
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
    assert process.poll() is not None
