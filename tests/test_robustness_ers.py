"""The ten attacks against plain loops, the extremes, the subset, resuming, restarts and sharing."""

import json
import math
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mdprop import robustness as room
from mdprop.data import ImageSet, glyphs
from mdprop.model import Embedder, embed
from mdprop.norm import convert_multi_norm
from mdprop.robustness import TEN, Robustness, ers

EPS, STEPS, SIZE = 8 / 255, 6, 3 / 255


class Tiny(nn.Module):
    "Smooth, so that rounding moves few signs."

    def __init__(self, pixels, dim=5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(pixels, 12), nn.Linear(12, dim)

    def forward(self, x):
        return F.normalize(self.b(torch.tanh(4 * self.a(x.flatten(1).to(self.a.weight.dtype)))))


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 5)[:-4]  # the last class has one image
    images = torch.from_numpy(rng.integers(0, 256, (len(labels), 1, 4, 4), dtype=np.uint8))
    return ImageSet(images, labels, [f"class {i}" for i in range(9)], [f"image {i}" for i in range(len(labels))], name="noise")


@pytest.fixture(scope="module")
def model():
    return Tiny(16)


def d(a, b):
    return torch.sqrt(((a - b) ** 2).sum())


def hinge(value):
    return torch.clamp(value, min=0)


def plain_loss(name, z, i, p, gallery, labels):  # noqa: PLR0911
    "The minimised loss of the table of the ten attacks, candidate by candidate."
    n = len(gallery)
    others = [j for j in range(n) if j not in (i, p)]
    mean = lambda terms: sum(terms) / (n - 2)
    if name == "CA+":
        return mean([hinge(d(gallery[p], z) - d(gallery[p], gallery[x])) for x in others])
    if name == "CA-":
        return mean([hinge(d(gallery[p], gallery[x]) - d(gallery[p], z)) for x in others])
    if name == "QA+":
        return mean([hinge(d(z, gallery[p]) - d(z, gallery[x])) for x in others])
    if name in ("QA-", "GTT"):
        return mean([hinge(d(z, gallery[x]) - d(z, gallery[p])) for x in others])
    if name == "TMA":
        return 1 - F.cosine_similarity(z, gallery[p], dim=0)
    if name in ("ES:D", "ES:R"):
        return -d(z, gallery[i])
    if name == "GTM":
        return d(z, gallery[p])
    matched = [d(z, gallery[x]) for x in range(n) if x != i and labels[x] == labels[i]]
    wrong = [d(z, gallery[x]) for x in range(n) if labels[x] != labels[i]]
    return hinge(torch.stack(wrong).max() - torch.stack(matched).min()) if matched else 0 * z.sum()


def plain_outcome(name, z, i, p, gallery, labels):  # noqa: PLR0911
    "What is read off the attacked image, by sorting."
    n = len(gallery)
    others = [j for j in range(n) if j not in (i, p)]
    if name in ("CA+", "CA-"):
        return 100 * sum(bool(d(gallery[p], gallery[x]) < d(gallery[p], z)) for x in others) / (n - 2)
    if name in ("QA+", "QA-"):
        return 100 * sum(bool(d(z, gallery[x]) < d(z, gallery[p])) for x in others) / (n - 2)
    if name == "TMA":
        return float(z @ gallery[p])
    if name == "ES:D":
        return float(d(z, gallery[i]))
    order = sorted((j for j in range(n) if j != i), key=lambda j: float(d(z, gallery[j])))
    if name == "GTT":
        return 100.0 * (p in order[:4])
    if not any(labels[j] == labels[i] for j in order):
        return math.nan
    return 100.0 * bool(labels[order[0]] == labels[i])


def plain_attack(name, model, x, i, p, gallery, labels, start):
    x0, x = x, start.clone()
    for _ in range(STEPS):
        x.requires_grad_()
        plain_loss(name, model(x[None])[0], i, p, gallery, labels).backward()
        with torch.no_grad():
            x = torch.max(torch.min(x - SIZE * x.grad.sign(), x0 + EPS), x0 - EPS).clamp(0, 1)
    return x.detach()


def legal_partner(name, i, p, gallery, labels):
    "Is the partner one that the definition allows?"
    n, k = len(gallery), max(1, round(len(gallery) / 100))
    near = lambda q: sorted((j for j in range(n) if j != q), key=lambda j: float(d(gallery[q], gallery[j])))
    kind = TEN[name].partner
    if kind == "random":
        return p != i
    if kind == "near":
        return p in near(i)[:k]
    if kind == "top":
        return p == near(i)[0]
    if kind == "wrong":
        return p == next(j for j in near(i) if labels[j] != labels[i])
    if kind == "asks":
        askers = [q for q in range(n) if q != i and i in near(q)[:k]]
        return p in askers if askers else p == near(i)[0]
    return p == i


@pytest.mark.parametrize("name", TEN)
def test_an_attack_is_its_definition(name, model, small, monkeypatch):
    starts, original = {}, room._Search.start

    def recorded(search, x, jobs, restart=0):
        found = original(search, x, jobs, restart)
        starts[int(jobs[0][1].own[0])] = found
        return found

    monkeypatch.setattr(room._Search, "start", recorded)
    found = ers(model, small, [name], EPS, STEPS, SIZE, batch_size=1, progress=False)
    z, labels = embed(model, small), small.labels
    own = torch.arange(len(small))
    partners = room._partners(z, labels, own, [name], 0)[name].tolist()
    want = []
    for i in range(len(small)):
        assert legal_partner(name, i, partners[i], z, labels)
        image = small.batch([i])[0][0]
        moved = plain_attack(name, model, image, i, partners[i], z, labels, starts[i][0])
        with torch.no_grad():
            want.append(plain_outcome(name, model(moved[None])[0], i, partners[i], z, labels))
    got = found.outcomes[name].to_numpy()
    exact = np.isclose(got, np.array(want), atol=2e-3, equal_nan=True)
    assert exact.mean() >= 0.95, (got, want)  # a rounding may turn the sign of a gradient that is nearly zero
    assert np.nanmean(got) == pytest.approx(np.nanmean(want), abs=0.01 * (1 if name in ("TMA", "ES:D") else 100))
    raw = np.nanmean(got)
    score = {"CA+": 2 * raw, "QA+": 2 * raw, "CA-": 100 - raw, "QA-": 100 - raw, "TMA": 100 * (1 - raw), "ES:D": 100 * (2 - raw) / 2}.get(name, raw)
    assert found.table["raw"][0] == pytest.approx(raw) and found.table["score"][0] == pytest.approx(min(100, max(0, score)))


def test_all_ten_together_find_what_each_finds_alone(model, small):
    together = ers(model, small, eps=EPS, steps=STEPS, progress=False)
    for name in TEN:
        alone = ers(model, small, [name], EPS, STEPS, progress=False).outcomes[name]
        assert np.isclose(alone, together.outcomes[name], atol=2e-3, equal_nan=True).mean() >= 0.95
    assert together.ers == pytest.approx(together.table["score"][:10].mean())


def test_a_candidate_that_rises_may_share_the_search_of_tma(small, monkeypatch):
    "CA+ with a search of its own, by its own objective, comes to the same ranks."
    model = Tiny(16, seed=1)
    shared = ers(model, small, ["CA+"], EPS, STEPS, progress=False).outcomes
    monkeypatch.setitem(TEN, "CA+", replace(TEN["CA+"], shares=None))
    monkeypatch.setattr(room, "_partners", lambda *args, draw=room._partners: draw(*args) | {"CA+": draw(*args[:3], ["TMA"], args[4])["TMA"]})
    alone = ers(model, small, ["CA+"], EPS, STEPS, progress=False).outcomes
    assert np.isclose(shared, alone, atol=2e-3).mean() >= 0.95


def test_images_at_rest_are_left_out_and_nothing_else_changes(small, monkeypatch):
    "Strong steps come to rest at the corners of the ball: the result is that of the full loop."
    model, counts = Tiny(16, seed=3), []
    hook = model.register_forward_hook(lambda m, inputs, out: counts.append(len(inputs[0])))
    found = ers(model, small, ["TMA", "GTM"], EPS, 20, 9 / 255, progress=False)
    hook.remove()
    assert sum(counts) < 20 * 2 * len(small)
    original = room._descend
    monkeypatch.setattr(room, "_descend", lambda *args: original(*args, check=10**9))
    want = ers(model, small, ["TMA", "GTM"], EPS, 20, 9 / 255, progress=False)
    assert np.isclose(found.outcomes, want.outcomes, atol=1e-4, equal_nan=True).mean() > 0.97


class Constant(Tiny):
    def forward(self, x):
        z = super().forward(x)
        return F.normalize(torch.ones_like(z)) + 0 * z


def test_a_constant_embedding(small):
    "Ties are broken at random, in expectation: ranks are in the middle, Recall@1 is chance, and nothing shifts."
    found = ers(Constant(16), small, eps=EPS, steps=2, progress=False).table.set_index("attack")["score"]
    n, counts = len(small), torch.bincount(small.labels)
    chance = 100 * float(((counts - 1) / (n - 1))[small.labels][counts[small.labels] > 1].mean())
    want = {"CA+": 100, "CA-": 50, "QA+": 100, "QA-": 50, "TMA": 0, "ES:D": 100, "ES:R": chance, "LTM": chance, "GTM": chance, "GTT": 400 / (n - 1)}
    for name, score in want.items():
        assert found[name] == pytest.approx(score, abs=0.05), name


def test_without_a_budget_nothing_happens(model, small):
    found = ers(model, small, eps=0, progress=False).table.set_index("attack")["score"]
    for name in ("ES:D", "GTT"):
        assert found[name] == pytest.approx(100, abs=0.1)
    assert found["ES:R"] == found["LTM"] == found["GTM"]
    assert found["QA-"] > 95 and found["CA-"] > 90


def test_a_subset_is_the_same_images_every_time(model, small):
    one, two = (ers(model, small, ["TMA"], steps=1, size=7, seed=3, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one.outcomes, two.outcomes)
    assert len(one.outcomes) == 7 and one.settings["size"] == 7 and one.settings["candidates"] == len(small)
    assert list(ers(model, small, ["TMA"], steps=1, size=7, seed=4, progress=False).outcomes.index) != list(one.outcomes.index)


def test_a_second_call_goes_on(model, small, tmp_path, monkeypatch):
    settings = dict(attacks=["QA+", "ES:D"], steps=3, batch_size=12, folder=tmp_path, progress=False)
    want = ers(model, small, **{**settings, "folder": None})
    original, calls = room._Search.__call__, []

    def breaks(search, model, x, jobs):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(search, model, x, jobs)

    monkeypatch.setattr(room._Search, "__call__", breaks)
    with pytest.raises(KeyboardInterrupt):
        ers(model, small, **settings)
    monkeypatch.setattr(room._Search, "__call__", lambda search, model, x, jobs: calls.append(len(x)) or original(search, model, x, jobs))
    calls.clear()
    pd.testing.assert_frame_equal(ers(model, small, **settings).outcomes, want.outcomes)
    assert sum(calls) == len(small) - 12
    calls.clear()
    ers(model, small, **settings)
    assert not calls  # finished
    ers(Tiny(16, seed=9), small, **settings)
    assert sum(calls) == len(small)  # another model begins anew


def bad_deflate(path):
    "An archive of sound form whose packed bytes are none."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("sample", "values", "finished"):
            file.writestr(f"{name}.npy", bytes(200))
    content = bytearray(path.read_bytes())
    content[50:54] = b"\xff" * 4
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2), "empty": lambda path: os.truncate(path, 0), "packed": bad_deflate,
    "encrypted": lambda path: path.write_bytes(re.sub(rb"(?<=PK\x01\x02.{4})\x00", b"\x01", path.read_bytes(), flags=re.DOTALL)),
    "of other images": lambda path: np.savez(path, sample=0, values=np.zeros((3, 2)), finished=np.zeros(3, bool)),
    "without its parts": lambda path: np.savez(path, x=1), "no archive": lambda path: path.write_text("robust"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_outcomes_are_named_and_made_again(model, small, tmp_path, damage):
    settings = dict(attacks=["TMA", "QA+"], steps=1, size=7, folder=tmp_path, progress=False)
    want = ers(model, small, **settings)
    (path,) = tmp_path.glob("ers-*.npz")
    sound = path.read_bytes()
    DAMAGE[damage](path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .* attacked again"):
        pd.testing.assert_frame_equal(ers(model, small, **settings).outcomes, want.outcomes)
    assert path.read_bytes() == sound


def test_restarts_find_lower_objectives(model, small):
    one, four = (ers(model, small, ["TMA"], EPS, 3, restarts=r, progress=False).table["raw"][0] for r in (1, 4))
    assert four >= one - 1e-6


def test_the_domain_that_is_attacked_and_the_one_that_answers():
    test = glyphs(classes=20, per_class=4, size=16).split_classes()[1]
    torch.manual_seed(0)
    model = convert_multi_norm(Embedder("resnet10", dim=8, image_shape=test.shape, width=4))
    for norm in model.modules():
        if hasattr(norm, "domain_norms"):
            norm.domain_norms["multi"].running_mean += 0.3
    settings = dict(attacks=["TMA"], eps=16 / 255, steps=8, progress=False)
    white = {name: ers(model, test, domain=name, **settings).table["raw"][0] for name in ("clean", "multi")}
    transferred = ers(model, test, domain="clean", answer="multi", **settings)
    assert transferred.settings["answer"] == "multi" and transferred.table["raw"][0] < white["multi"]


def test_everything_stated_and_writable(model, small):
    found = ers(model, small, steps=1, size=4, progress=False)
    assert isinstance(found, Robustness)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["settings"]["eps"] == 8 / 255
    assert list(found.table["attack"]) == [*TEN, "ERS"]


@pytest.mark.parametrize("wrong", [{"attacks": ["QA"]}, {"attacks": []}, {"eps": -1}, {"restarts": 0}, {"size": 0}])
def test_impossible_settings(model, small, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        ers(model, small, progress=False, **wrong)


def test_one_class_is_refused(model, small):
    with pytest.raises(ValueError, match="2 classes"):
        ers(model, small.subset(range(5)), progress=False)
