"""Signs of masking, curves, transfer, shifts, gain and the whole report; real images below an ERS of 10."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mdprop import robustness as room
from mdprop.attacks import FeatureAttack
from mdprop.data import ImageSet, cub200, glyphs, omniglot
from mdprop.model import Embedder, embed
from mdprop.norm import DomainGate, convert_multi_norm, interpolate_domains
from mdprop.retrieval import retrieval_metrics
from mdprop.robustness import SHIFTS, TEN, RobustnessReport, attack_curve, ers, evaluate_shifts, masking_signs
from mdprop.robustness import robustness_gain, robustness_report, shift_images, square_attack, transfer_table
from mdprop.runs import RunError
from mdprop.train import fit


class Rounded(nn.Module):
    "Sees the pixels in steps: the gradient is zero everywhere."

    def __init__(self, inner, levels=60):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        return self.inner(x + (torch.round(self.levels * x) / self.levels - x))


class Saturated(nn.Module):
    "Its first layer is at the ends of tanh, where the gradient all but vanishes."

    def __init__(self, pixels, dim):
        super().__init__()
        self.a, self.b = nn.Linear(pixels, 12), nn.Linear(12, dim)

    def forward(self, x):
        return F.normalize(self.b(torch.tanh(40 * self.a(x.flatten(1)))))


@pytest.fixture(scope="module")
def letters():
    test = glyphs(classes=40, per_class=5, size=16).split_classes()[1]
    torch.manual_seed(0)
    return test, Embedder("resnet10", dim=16, image_shape=test.shape, width=4).eval()


def test_a_plain_model_shows_no_sign_of_masking(letters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = masking_signs(letters[1], letters[0], queries=100, size=40, eps=4 / 255, step_size=1 / 255, progress=False)
    assert table.attrs["signs"] == []
    value = table.set_index("search")["objective"]
    assert value["gradient"] < value["one step"] < value["random"] < value["clean"] and value["gradient"] < value["square"] < value["clean"]


def test_masked_models_are_found_out(letters):
    test, model = letters
    with pytest.warns(UserWarning, match="masked"):
        signs = masking_signs(Rounded(model), test, queries=100, size=40, progress=False).attrs["signs"]
    assert len(signs) == 4  # all of them
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="masked"):
        signs = masking_signs(Saturated(256, 16), test, queries=200, size=40, progress=False).attrs["signs"]
    assert any("square" in sign for sign in signs)


def test_the_square_attack_stays_in_the_ball_and_comes_down(letters):
    test, model = letters
    x = test.batch(range(6))[0]
    target = embed(model, test)[20]

    def objective(x):
        return torch.linalg.vector_norm(model(x) - target, dim=1)

    seen = [square_attack(objective, x, 8 / 255, queries, seed=1)[1].mean() for queries in (1, 30, 300)]
    assert seen[0] > seen[1] > seen[2]
    moved, value = square_attack(objective, x, 8 / 255, 50, seed=1)
    assert (moved - x).abs().max() <= 8 / 255 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    torch.testing.assert_close(value, objective(moved).detach())
    alone = square_attack(lambda x: torch.linalg.vector_norm(model(x) - target, dim=1), x[4:], 8 / 255, 50, seed=1, rows=torch.tensor([4, 5]))[0]
    torch.testing.assert_close(alone, moved[4:])  # whatever stands beside an image


# Curves and transfer


@pytest.fixture(scope="module")
def sets():
    return glyphs(classes=60, per_class=12, size=24).split_classes()


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = dict(width=8, dim=16, batch_size=32, per_class=4, valid=0, progress=False)
    return {name: fit(sets[0], name, folder / name, epochs=epochs, **settings) for name, epochs in (("plain", 10), ("mdprop", 4))}


def test_an_undefended_model_falls_below_10(tmp_path):
    train, test = glyphs().split_classes()
    run = fit(train, "plain", tmp_path / "run", epochs=2, width=8, dim=32, progress=False)
    assert ers(run, test.keep_classes(range(15)), size=24, progress=False).ers < 10


@pytest.mark.parametrize("over", ["eps", "steps"])
def test_curves_fall_to_chance(runs, sets, over):
    values = {"eps": [e / 255 for e in (0, 2, 8, 64)], "steps": [0, 1, 8, 32]}[over]
    table = attack_curve(runs["plain"], sets[1], over, values, size=60, steps=12, progress=False)
    assert table.attrs["signs"] == [] and list(table["value"]) == values * 2
    chance = 100 * 11 / (len(sets[1]) - 1)
    for name, part in table.groupby("attack"):
        assert part["chance"].tolist() == pytest.approx([chance] * 4)
        assert part["score"].iloc[0] > 3 * chance and (part["score"].diff().dropna() <= part["error"].iloc[0]).all()
        assert part["score"].iloc[-1] <= chance + part["error"].iloc[-1], (name, part)
    clean = ers(runs["plain"], sets[1], ["GTM"], eps=0, steps=1, size=60, progress=False).table["score"][0]
    assert table.query("attack == 'GTM'")["score"].iloc[0] == clean


def test_a_curve_that_rises_is_told(runs, sets):
    class Cured(nn.Module):
        "Breaks by small changes and not by large ones: cleans whatever differs much from ink and paper."

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            far = (torch.minimum(x, 1 - x) > 10 / 255).float().mean((1, 2, 3), keepdim=True) > 0.1
            return self.inner(torch.where(far, x.round(), x))

    sharp = sets[1].subset(range(len(sets[1])))
    sharp.images = ((sharp.images > 127) * 255).to(torch.uint8)
    table = attack_curve(Cured(runs["plain"].model()), sharp, "eps", [0, 4 / 255, 32 / 255], ["GTM"], steps=8, size=120, progress=False)
    assert any("rises where eps grows to 32/255" in sign for sign in table.attrs["signs"])


def test_chance_is_what_an_ignorant_embedding_scores(sets):
    own = torch.arange(len(sets[1]))
    random = F.normalize(torch.randn(len(own), 8, generator=torch.Generator().manual_seed(0)))
    found = room._recall_and_map(random, own, random, sets[1])
    assert 100 * found[0] == pytest.approx(room._chance(sets[1].labels, own, "GTM"), abs=300 * found[1] / 1.96)
    assert math.isnan(room._chance(sets[1].labels, own, "CA+")) and room._chance(sets[1].labels, own, "GTT") == pytest.approx(400 / (len(own) - 1))


@pytest.mark.parametrize("wrong", [dict(over="size"), dict(values=[2, 1]), dict(eps=0), dict(attacks=["QA"]), dict(size=0)])
def test_impossible_curves(letters, wrong):
    with pytest.raises(ValueError, match=r"a curve is over|name some of|wants eps"):
        attack_curve(letters[1], letters[0], progress=False, **wrong)


def test_transfer_is_white_box_on_the_diagonal_and_weaker_elsewhere(runs, sets):
    settings = dict(attacks=["ES:R", "GTM"], size=48, steps=8, eps=3 / 255, step_size=1 / 255, progress=False)
    table = transfer_table(runs["mdprop"], sets[1], **settings)
    assert len(table) == 2 * 2 * 2
    for domain in ("clean", "attacked"):
        white = ers(runs["mdprop"], sets[1], domain=domain, **settings).table.set_index("attack")["score"]
        for name in ("ES:R", "GTM"):
            part = table.query("attack == @name and answers == @domain").set_index("attacked")["score"]
            assert part[domain] == white[name]
    mean = table.query("attack == 'GTM'").assign(own=table["attacked"] == table["answers"]).groupby("own")["score"].mean()
    assert mean[True] <= mean[False]
    with pytest.raises(ValueError, match="nothing to transfer"):
        transfer_table(runs["plain"], sets[1], **settings)


@pytest.fixture(scope="module")
def gated(sets):
    "A model whose norms differ much, and a gate that tells them apart."
    torch.manual_seed(0)
    test = sets[1]
    model = convert_multi_norm(Embedder("resnet10", dim=16, image_shape=test.shape, width=8), ("clean", "multi")).eval()
    for norm in model.modules():
        if hasattr(norm, "domain_norms"):
            norm.domain_norms["multi"].weight.data *= 0.5 + torch.rand_like(norm.domain_norms["multi"].weight)
            norm.domain_norms["multi"].running_mean += 0.3 * torch.randn_like(norm.domain_norms["multi"].running_mean)
    images = test.batch(range(60))[0]
    gate = DomainGate(model).eval()
    return gate.calibrate({"clean": images, "multi": FeatureAttack(5)(model, images, domain="multi")})


def test_the_attack_through_a_gate_is_stronger_than_one_from_a_domain(gated, sets):
    settings = dict(attacks=["TMA", "ES:D"], size=60, eps=4 / 255, steps=10, step_size=1 / 255, progress=False)
    through = ers(gated, sets[1], **settings)
    assert through.settings["answer"] == through.settings["domain"] is None
    for domain in ("clean", "multi"):
        moved = ers(gated.model, sets[1], domain=domain, answer=gated, **settings)
        assert moved.settings["answer"] == "another model (DomainGate)"
        assert (through.table["score"] < moved.table["score"]).all()


def test_the_gradient_flows_through_the_choice_of_the_gate(gated, sets):
    "With the weights held fixed the gradient is another one."
    x = sets[1].batch(range(4))[0].requires_grad_()
    gate = gated
    full = torch.autograd.grad(gate(x).sum(), x)[0]
    weights = gate.weights(x).detach()
    original, gate._decide = gate._decide, lambda norm, h: weights
    try:
        held = torch.autograd.grad(gate(x).sum(), x)[0]
    finally:
        gate._decide = original
    assert not torch.allclose(full, held)


def test_an_interpolated_model_is_attacked_as_it_answers(gated, sets):
    model = gated.model
    settings = dict(attacks=["TMA"], size=40, eps=4 / 255, steps=8, step_size=1 / 255, progress=False)
    half = interpolate_domains(model, {"clean": 0.5, "multi": 0.5})
    white = ers(half, sets[1], **settings).table["score"][0]
    assert all(white < ers(model, sets[1], domain=domain, answer=half, **settings).table["score"][0] for domain in ("clean", "multi"))


# Shifts


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_change_more_and_more_and_stay_images(kind, channels, sets):
    x = sets[1].batch(range(12))[0].expand(-1, channels, -1, -1).contiguous()
    moved = [shift_images(x, kind, severity, seed=1) for severity in range(1, 6)]
    change = [float((m - x).abs().mean()) for m in moved]
    assert all(m.shape == x.shape and m.dtype == x.dtype and m.min() >= 0 and m.max() <= 1 for m in moved)
    assert 0 < change[0] and change == sorted(change)
    rows = torch.arange(5, 9)
    torch.testing.assert_close(shift_images(x[5:9], kind, 4, 1, rows), moved[3][5:9], atol=1e-6, rtol=0)


def test_shifts_are_what_they_are_called():
    x = torch.zeros(40, 1, 32, 32)
    x[:, :, 8:24, 14:18] = 1
    noise = shift_images(torch.full((40, 1, 32, 32), 0.5), "noise", 1) - 0.5
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02) and abs(float(noise.mean())) < 0.002
    torch.testing.assert_close(shift_images(x, "contrast", 2), x.mean() + 0.3 * (x - x.mean()))
    torch.testing.assert_close(shift_images(x, "blur", 5).sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-4, atol=0)
    turned = shift_images(x, "rotation", 5)
    upper = turned[:, 0, 8:12].sum(1).argmax(1)  # a stick that turns leans to either side
    assert {"left", "right"} == {"left" if at < 16 else "right" for at in upper.tolist()}
    grey = shift_images(x, "jpeg", 5)
    torch.testing.assert_close(255 * grey, (255 * grey).round())


def test_shifted_queries_by_loops(runs, sets):
    test = sets[1].subset(range(40))
    table = evaluate_shifts(runs["plain"], test, ["blur", "noise"], [2], size=15, seed=3, progress=False)
    model = runs["plain"].model()
    z, own = embed(model, test), room._subset(test, 15, 3)
    for row, kind in zip(table.itertuples(), ("clean", "blur", "noise"), strict=True):
        x = test.batch(own.tolist())[0]
        with torch.no_grad():
            queries = model(shift_images(x, kind, 2, 3, own) if kind != "clean" else x)
        recalls, precisions = [], []
        for query, i in zip(queries, own.tolist(), strict=True):
            order = sorted((j for j in range(40) if j != i), key=lambda j: -float(query @ z[j]))
            right = [bool(test.labels[j] == test.labels[i]) for j in order]
            count = sum(right)
            if count:
                recalls.append(right[0])
                precisions.append(sum(sum(right[: k + 1]) / (k + 1) for k in range(count) if right[k]) / count)
        assert row.recall_at_1 == pytest.approx(np.mean(recalls)) and row.map_at_r == pytest.approx(np.mean(precisions), abs=1e-6)
        assert row.error == pytest.approx(1.96 * np.std(recalls, ddof=1) / len(recalls) ** 0.5) and row.images == len(recalls)


def test_official_queries_are_shifted_and_search_their_gallery(letters):
    data = glyphs(classes=8, size=16)
    roles = ["query" if i % 3 == 0 else "gallery" for i in range(len(data))]
    official = ImageSet(data.images, data.labels, data.class_names, data.keys, split="official", roles=roles)
    model, own = letters[1], torch.arange(len(data))[::3]
    table, z = evaluate_shifts(model, official, ["noise"], [2], seed=3, progress=False), embed(letters[1], data)
    assert room._subset(official, 5, 0).remainder(3).eq(0).all()
    gallery = torch.arange(len(data)) % 3 != 0
    for row, kind in zip(table.itertuples(), ("clean", "noise"), strict=True):
        x = data.batch(own.tolist())[0]
        with torch.no_grad():
            queries = model(shift_images(x, kind, 2, 3, own) if kind != "clean" else x)
        expected = retrieval_metrics(queries, data.labels[own], (1,), gallery=z[gallery], gallery_labels=data.labels[gallery])
        assert (row.recall_at_1, row.map_at_r) == pytest.approx((expected["recall_at_1"], expected["map_at_r"]))
        assert row.images == len(own)


def test_unknown_shifts(letters):
    for wrong in (dict(kinds=["fog"]), dict(severities=[6])):
        with pytest.raises(ValueError, match="severities 1 to 5"):
            evaluate_shifts(letters[1], letters[0], progress=False, **wrong)


# The report

QUICK = dict(size=32, steps=3, progress=False)


@pytest.fixture(scope="module")
def reports(runs, sets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: robustness_report(run, sets[1], **QUICK, quick=name == "plain") for name, run in runs.items()}


def test_the_report_is_tidy_and_on_the_disk(reports, runs, sets):
    report = reports["mdprop"]
    names = ["clean", "single", "multi", *SHIFTS, *TEN, "ERS"]
    assert list(dict.fromkeys(report.scores["distribution"])) == names
    assert not report.scores.duplicated(["distribution", "strength", "measure"]).any() and report.scores["score"].between(0, 100).all()
    stored = json.loads((runs["mdprop"].path / "robustness.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {"eps", "steps", "step_size", "restarts", "size", "seed", "fingerprint", "versions", "shifts", "curves"} <= stored["settings"].keys()
    again = RobustnessReport.from_json(stored)
    pd.testing.assert_frame_equal(again.scores, report.scores)
    assert str(again) == str(report) and all(name in str(report) for name in names)
    assert len(report.transfer) == 2 * 2 * 2 and set(report.curves["over"]) == {"eps", "steps"} and len(report.searches) == 6
    alone = ers(runs["mdprop"], sets[1], **QUICK)
    assert report.scores.set_index("distribution").loc["ERS", "score"] == alone.ers


def test_a_quick_report_is_short(reports):
    quick = reports["plain"]
    assert len(quick.curves) == len(quick.transfer) == len(quick.searches) == 0 and "grows" not in str(quick)


def test_a_report_goes_on_where_it_was_stopped(reports, runs, sets, monkeypatch):
    calls = []
    original = room._Search.__call__
    monkeypatch.setattr(room._Search, "__call__", lambda search, model, x, jobs: calls.append(len(x)) or original(search, model, x, jobs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = robustness_report(runs["plain"], sets[1], **QUICK, quick=True)
    assert not calls
    pd.testing.assert_frame_equal(again.scores, reports["plain"].scores)


def test_gain_is_the_ratio(reports, runs):
    table = robustness_gain(runs["mdprop"], reports["plain"]).set_index("distribution")
    ours, theirs = (reports[name].scores.query("measure != 'MAP@R'").groupby("distribution")["score"].mean() for name in ("mdprop", "plain"))
    for name in ("clean", "single", "noise", "ERS", "CA-"):
        assert table.loc[name, "ratio"] == pytest.approx(ours[name] / theirs[name])
    with np.errstate(divide="ignore"):
        ratios = (ours / theirs)[["single", "multi", *SHIFTS, "ERS"]]
    assert table.loc["average", "ratio"] == pytest.approx(ratios[np.isfinite(ratios)].mean())
    assert (robustness_gain(reports["plain"], reports["plain"])["ratio"].dropna() == 1).all()


def test_reports_of_other_settings_are_not_compared(reports, runs, sets, tmp_path):
    other = robustness_report(runs["plain"].model(), sets[1], size=32, steps=2, quick=True, progress=False)
    with pytest.raises(ValueError, match="differ in steps: 3 and 2"):
        robustness_gain(reports["mdprop"], other)
    with pytest.raises(RunError, match=r"robustness.json is missing"):
        robustness_gain(tmp_path, other)


def test_a_masked_model_warns_in_its_report(letters):
    with pytest.warns(UserWarning, match="may be masked"):
        report = robustness_report(Rounded(letters[1]), letters[0], size=80, steps=4, progress=False)
    assert report.signs and f"WARNING {report.signs[0]}" in str(report)


# Real images


@pytest.mark.parametrize(("name", "eps"), [("cub200", 8), ("omniglot", 48)])
def test_plain_models_of_real_images_fall_below_10(name, eps, real_data, tmp_path):
    "Ink on paper is black and white: 8/255 are too little there."
    data = cub200(real_data, size=32) if name == "cub200" else omniglot(real_data, size=28)
    train, test = data.keep_classes(range(0, len(data.class_names), 5)).in_memory().split_classes()
    run = fit(train, "plain", tmp_path / "run", epochs=2, width=8, dim=32, batch_size=40, per_class=4, augment=None, valid=0, progress=False)
    found = ers(run, test, eps=eps / 255, step_size=3 * eps / 8 / 255, size=24, progress=False)
    assert found.ers < 10, found
