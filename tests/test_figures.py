"Figures are pure functions of arrays; what they draw can be read back from their traces."

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("plotly", reason="needs the extra lab")

from mdprop.density import DensityStats, distance_overlap
from mdprop.figures import OKABE_ITO, density_pair_figure, distance_figure, metrics_figure, spectrum_figure


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
