"RobustnessDashboard from reports that are written by hand; without a browser."

import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards.robustness import (
    MEANINGS, Measured, RobustnessDashboard, growing_curves, measured, place, reservations, score_table, shift_curves, transfer_rows,
)  # fmt: skip
from mdprop.robustness import CURVES, SHIFTS, TEN, RobustnessReport
from mdprop.runs import FORMAT, RunError, write_json

HOSTILE = "<img src=x onerror=alert(1)>"
SETTINGS = dict(data="glyphs-test", fingerprint="0", eps=8 / 255, steps=32, step_size=3 / 255, restarts=1, size=256, seed=0)


def hand_made(seed=0, signs=(), transfer=True, quick=False, **settings):
    "A report of made-up numbers, as `robustness_report` would write it."
    draw = np.random.default_rng(seed)
    rows = []
    for name, strength in [("clean", ""), ("single", "eps"), ("multi", "eps"), *((s, f"severity {k}") for s in SHIFTS for k in range(1, 6))]:
        rows += [[name, strength, measure, draw.uniform(10, 90), 4.0, 64] for measure in ("Recall@1", "MAP@R")]
    scores = {name: draw.uniform(0, 100) for name in TEN}
    rows += [[name, "eps", "score", value, 3.0, 64] for name, value in (scores | {"ERS": np.mean(list(scores.values()))}).items()]
    curves = [[name, over, value, max(0.0, 80 - 9 * k), 5.0, 2.0, 16] for name in ("ES:R", "GTM") for over in CURVES for k, value in enumerate(CURVES[over])]
    crossed = [[name, one, two, draw.uniform(0, 100), 3.0, 16] for name in ("ES:R", "GTM") for one in ("clean", "multi") for two in ("clean", "multi")]
    return RobustnessReport(
        pd.DataFrame(rows, columns=["distribution", "strength", "measure", "score", "error", "images"]),
        pd.DataFrame() if quick else pd.DataFrame(curves, columns=["attack", "over", "value", "score", "error", "chance", "images"]),
        pd.DataFrame(crossed, columns=["attack", "attacked", "answers", "score", "error", "images"]) if transfer else pd.DataFrame(),
        pd.DataFrame(), list(signs), SETTINGS | dict(run="run") | settings,
    )  # fmt: skip


def hand_made_run(folder, report=None):
    "A folder that is a run, as far as this dashboard is concerned."
    write_json(folder / "config.json", dict(format=FORMAT))
    if report is not None:
        write_json(folder / "robustness.json", report.to_json())
    return folder


def test_the_table_holds_every_score_in_order():
    table = score_table([Measured("a", hand_made(0)), Measured("new", None, "not yet"), Measured("b", hand_made(1))])
    assert list(table.index) == ["clean", "single", "multi", *SHIFTS, *TEN, "ERS"] and list(table.columns) == ["a", "a ±", "b", "b ±"]
    assert table.loc["ERS", "a"] == pytest.approx(table.loc[list(TEN), "a"].mean())
    report = hand_made(0).scores.query("distribution == 'blur' and measure == 'Recall@1'")
    assert table.loc["blur", "a"] == pytest.approx(report["score"].mean()) and np.isnan(table.loc["blur", "a ±"]) and table.loc["CA+", "a ±"] == 3
    assert set(table.index) <= set(MEANINGS) and score_table([]).empty


def test_curves_have_their_intervals_and_chance():
    runs = [Measured("a", hand_made(0)), Measured("quick", hand_made(1, quick=True)), Measured("b", hand_made(2))]
    lines, ticks = growing_curves(runs, "eps", "GTM")
    assert [(line.name, line.hue) for line in lines] == [("a", 0), ("b", 2), ("chance", 7)] and ticks == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    assert np.all(lines[0].low <= lines[0].y) and np.all(lines[0].high <= 100) and np.all(lines[0].low >= 0) and lines[0].x[0] == 0
    assert growing_curves(runs, "steps", "TMA") == ([], [])
    assert place([0, 0.5, 1, 2, 128]) == [0, 0.3, 1, 2, 8]
    assert [len(line.x) for line in shift_curves(runs, "jpeg", "MAP@R")] == [6, 6, 6]


def test_reservations_come_in_words():
    assert reservations([Measured("a", hand_made()), Measured("b", hand_made(1))]) == []
    other, masked = hand_made(1, eps=4 / 255, size=None), hand_made(2, ["GTM: more steps do not help"])
    said = reservations([Measured("a", hand_made()), Measured("b", other), Measured("c", masked)])
    assert len(said) == 2 and "cannot be compared: they differ in eps" in said[0] and "size (256 and None)" in said[0]
    assert said[1].startswith("c, GTM: more steps do not help: its gradients may be masked")


def test_a_run_without_a_report_names_the_command(tmp_path, monkeypatch):
    one = measured(hand_made_run(tmp_path / "plain"))
    assert one.report is None and "run `mdprop robustness plain`" in one.missing, "elsewhere: its name, not where it lies"
    monkeypatch.chdir(tmp_path.parent)
    assert f"run `mdprop robustness {tmp_path.name}/plain`" in measured(tmp_path / "plain").missing, "the way from here"
    board = RobustnessDashboard(tmp_path / "plain")
    assert "has not been measured yet" in board._alerts.value and board._attack.layout.display == "none"
    assert board.save_html(tmp_path / "page.html").exists()
    hand_made_run(tmp_path / "plain", hand_made())
    board._again.click()
    assert board._alerts.value == "" and board._attack.layout.display is None and "ERS" in board._table.value
    for broken in ('{"scores": ', "[]", '{"signs": []}'):
        (tmp_path / "plain" / "robustness.json").write_text(broken)
        board.read()
        assert "cannot be read" in board._alerts.value and "again" in board._alerts.value
    with pytest.raises(RunError, match="does not exist"):
        RobustnessDashboard(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give runs, run folders or reports"):
        RobustnessDashboard(np.zeros(2))
    assert "No run given" in RobustnessDashboard()._words.value


def test_state_controls_and_charts(tmp_path):
    board = RobustnessDashboard(hand_made(0, run="a"), hand_made(1, run="b"))
    board._attack.value, board._shift.value, board._measure.value = "GTM", "rotation", "MAP@R"
    kept = json.loads(json.dumps(board.state.as_dict()))
    assert kept == dict(attack="GTM", measure="MAP@R", shift="rotation")
    again = RobustnessDashboard(hand_made(0, run="a"))
    again.state.load(kept)
    titles = [chart.figure.layout.title.text for chart in again.charts]
    assert titles[1:] == ["GTM as eps grows", "GTM as the number of steps grows", "rotation: MAP@R by severity"]
    assert (again._attack.value, again._shift.value, again._measure.value) == ("GTM", "rotation", "MAP@R")
    again.state.attack = "TMA"  # not in the curves
    assert again._attack.value == "TMA" and not again.charts[1].data and "No curves" in again.charts[1].figure.layout.annotations[0].text
    assert len(board.charts[0].data) == 2 and [trace.line.dash for trace in board.charts[0].data] == ["solid", "dash"]
    assert board._again.layout.display == "none"
    before = board.charts[0].data[0].line.color
    board._ground.theme = "dark"
    assert board.charts[0].data[0].line.color != before
    assert repr(board).startswith("RobustnessDashboard(a: ERS ")
    assert "<summary" in board._transfer.value and len(transfer_rows(board.runs)) == 8


def test_names_are_text_and_told_apart(tmp_path):
    folders = [hand_made_run(tmp_path / part / HOSTILE.replace("/", ""), hand_made(k)) for k, part in enumerate(("one", "two"))]
    board = RobustnessDashboard(*folders, hand_made(3, ["<b>sign</b>"]), hand_made(4))
    assert len({one.name for one in board.runs}) == 4
    for widget in (board._table, board._alerts, board._words, board._transfer):
        assert "<img" not in widget.value and "<b>sign" not in widget.value
    page = board.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<b>sign" not in page
