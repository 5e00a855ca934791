"Figures are pure functions of arrays; what they draw can be read back from their traces."

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("plotly", reason="needs the extra lab")

from mdprop.density import DensityStats, distance_overlap
from mdprop.figures import (
    OKABE_ITO, Curve, attack_path_figure, channels_figure, curves_figure, density_pair_figure, distance_figure, layers_figure, metrics_figure,
    radar_figure, spectrum_figure,
)  # fmt: skip


@pytest.fixture
def space():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(120, 6))
    return z / np.linalg.norm(z, axis=1, keepdims=True), np.arange(120) % 4


@pytest.mark.parametrize("template", ["light", "dark"])
def test_all_figures_in_both_templates(space, template):
    z, labels = space
    stats = DensityStats()
    stats.update(z, labels)
    overlap = distance_overlap(z, labels)
    table = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.5]})
    figures = [
        density_pair_figure(z[:, :2], z[:, 2:4], template=template),
        spectrum_figure({"plain": stats.spectrum}, template),
        distance_figure({"plain": (overlap.edges, overlap.intra, overlap.inter)}, template),
        metrics_figure(table, template=template),
    ]
    for figure in figures:
        assert figure.layout.title.text and figure.layout.template.layout.paper_bgcolor == ("white" if template == "light" else "rgb(17,17,17)")
        for trace in figure.data:
            assert trace.x is None or np.asarray(trace.x).ndim == 1
        figure.to_json()


def test_the_same_levels_on_both_sides(space):
    z, _ = space
    contours = [t for t in density_pair_figure(z[:, :2], z[:, :2] * 0.2).data if t.type == "contour"]
    assert len({(t.zmin, t.zmax, t.contours.start, t.contours.end, t.contours.size) for t in contours}) == 1
    assert contours[1].z.max() == 0 > contours[0].z.max(), "the narrower side is denser"


def test_points_are_thinned_but_the_density_is_of_all():
    xy = np.random.default_rng(0).normal(size=(5000, 2))
    few, all_of_them = density_pair_figure(xy, xy, points=100), density_pair_figure(xy, xy, points=5000)
    assert len(few.data[1].x) == 100 and np.array_equal(few.data[0].z, all_of_them.data[0].z)


def test_a_dead_direction_is_left_out_of_the_spectrum():
    line = spectrum_figure({"one": [2.0, 0.0, 1.0]}).data[0]
    assert np.allclose(line.y[:2], [2 / 3, 1 / 3]) and np.isnan(line.y[2])
    with pytest.raises(ValueError, match="'none'"):
        spectrum_figure({"none": [0.0, 0.0]})


def test_runs_keep_their_colour_and_missing_columns_are_skipped():
    one, two = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "rho": [1.0, 2.0]}), pd.DataFrame({"epoch": [1, 2], "loss": [2.5, 1.5]})
    figure = metrics_figure({"plain": one, "mdprop": two})
    assert [(t.name, t.line.color) for t in figure.data] == [("plain", OKABE_ITO[0]), ("plain", OKABE_ITO[0]), ("mdprop", OKABE_ITO[1])]
    with pytest.raises(ValueError, match="that varies"):
        metrics_figure(pd.DataFrame({"epoch": [1, 2]}))


def test_the_path_of_an_attack_begins_at_the_clean_image_and_two_pictures_share_a_scale():
    rng = np.random.default_rng(0)
    clean, path, targets = rng.normal(size=(30, 2)), rng.normal(size=(5, 2)).cumsum(0), rng.normal(size=(3, 2))
    own = np.arange(30) < 4
    figure = attack_path_figure(clean, path, targets, own, "<i>plain</i>", step=2)
    sizes = {trace.name: len(trace.x) for trace in figure.data}
    assert sizes == {"clean images": 26, "of its class": 4, "targets": 3, "path": 5, "clean": 1, "attacked": 1}
    at = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data}
    assert at["clean"] == pytest.approx(path[0]) and at["attacked"] == pytest.approx(path[2]) and "<i>" not in figure.layout.title.text
    other = attack_path_figure(9 * clean, path)
    ranges = [attack_path_figure(c, path, around=np.concatenate([clean, 9 * clean, targets])).layout.xaxis.range for c in (clean, 9 * clean)]
    assert ranges[0] == ranges[1] and other.layout.yaxis.scaleanchor == "x"
    for wrong in (dict(step=5), dict(step=-6), dict(targets=np.zeros((2, 3)))):
        with pytest.raises(ValueError, match=r"there is no step|give \(m, 2\)"):
            attack_path_figure(clean, path, **wrong)


@pytest.mark.parametrize("template", ["light", "dark"])
def test_curves_have_bands_gaps_and_one_axes_pair(template):
    x = np.arange(4)
    noisy = Curve("<b>a</b>", x, [0.1, np.nan, 0.3, 0.4], 0, 0, 0, low=x / 10, high=x / 5)
    figure = curves_figure([noisy, Curve("b", x, x, 1, 1, 1), Curve("b", x, x, 1, 1, faint=True)], "x", "y", "<i>", percent=True, template=template)
    band, line, second, pale = figure.data
    assert len(band.x) == 8 and list(band.y[-4:]) == list(np.float32(x / 5)[::-1]) and band.hoverinfo == "skip" and not band.showlegend
    assert line.name == "&lt;b&gt;a&lt;/b&gt;" and np.isnan(line.y[1]) and line.y.dtype == np.float32
    assert (second.line.dash, second.marker.symbol) == ("dash", "square") and pale.mode == "lines" and not pale.showlegend
    assert figure.layout.title.text == "&lt;i&gt;" and line.line.color != second.line.color and len(figure.layout.annotations) == 0
    nothing = curves_figure([Curve("a", x, np.full(4, np.nan))], template=template, empty="<nothing>")
    assert nothing.layout.annotations[0].text == "&lt;nothing&gt;" and not nothing.layout.xaxis.visible


def test_layers_show_every_number_and_what_is_not_there():
    figure = layers_figure([[0, np.nan], [0.02, 0.2]], ["a", "b"], ["x", "<y>"], "t", "nats", percent=True, chosen=(1, 1))
    heat = figure.data[0]
    assert [list(row) for row in heat.text] == [["0.0%", "n/a"], ["2.0%", "20.0%"]] and heat.x[1] == "&lt;y&gt;"
    assert np.isfinite(np.asarray(heat.z, float)).all() and heat.zmin <= np.min(heat.z) and np.max(heat.z) <= heat.zmax
    assert figure.layout.shapes[0].x0 == 0.5 and figure.layout.yaxis.autorange == "reversed"
    for values in (np.zeros((3, 2)), np.full((3, 2), np.nan), np.full((3, 2), 1e-12), np.full((3, 2), 1e9)):
        assert len(layers_figure(values, ["a", "b", "c"], ["x", "y"]).data) == 1
    assert layers_figure(np.zeros((60, 1)), [str(k) for k in range(60)], ["x"]).layout.height > 1200


def test_channels_lie_on_the_diagonal_where_nothing_changed():
    base = np.array([0.5, 1.0, 4.0])
    figure = channels_figure(base, {"same": base, "other": 2 * base}, "running variance", "clean", log=True)
    assert np.array_equal(figure.data[0].x, figure.data[0].y) and list(figure.data[2].x) == [0.5, 8.0] and figure.layout.xaxis.type == "log"
    assert channels_figure([np.nan], {"same": [np.nan]}, "weight").data[0].name == "same"


def test_a_radar_is_closed_and_tells_what_was_not_measured():
    figure = radar_figure({"a": [1.0, np.nan, 3.0], "<b>": [4.0, 5.0, 6.0]}, ["x", "y", "z"], {"a": [0.1, np.nan, np.nan], "<b>": [0.0, 1.0, 2.0]})
    assert list(figure.data[1].r) == [4, 5, 6, 4] and list(figure.data[1].theta) == ["x", "y", "z", "x"] and figure.data[1].name == "&lt;b&gt;"
    assert list(figure.data[0].customdata) == ["1.0 ± 0.1", "not measured", "3.0", "1.0 ± 0.1"]
    assert radar_figure({}, ["x"]).layout.annotations and not radar_figure({}, []).data
