"""Evaluation and comparison: attacked queries by hand, leaks told, results written."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mdprop.attacks import FeatureAttack
from mdprop.data import ImageSet, glyphs, spread_evenly
from mdprop.model import Embedder, embed
from mdprop.norm import convert_multi_norm, use_domain
from mdprop.retrieval import retrieval_metrics
from mdprop.robustness import attacked_recall, compare, embed_attacked, evaluate
from mdprop.runs import RunError, load_tensors
from mdprop.train import fit


@pytest.fixture(scope="module")
def sets():
    return glyphs(classes=60, per_class=6, size=24).split_classes()


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = dict(epochs=2, width=4, dim=8, batch_size=24, per_class=3, progress=False)
    return [fit(sets[0], recipe, folder / recipe, **settings) for recipe in ("plain", "mdprop")]


def test_attacked_recall_is_its_definition():
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(50, 3, generator=g, dtype=torch.float64)).float()
    queries, labels = F.normalize(z + 0.3 * torch.randn(50, 3, generator=g)), torch.randint(0, 12, (50,), generator=g)
    labels[0] = 99  # alone in its class
    hits = []
    for i in range(50):
        others = [j for j in range(50) if j != i]
        if any(labels[j] == labels[i] for j in others):
            best = max(others, key=lambda j: float(queries[i] @ z[j]))
            hits.append(float(labels[best] == labels[i]))
    assert attacked_recall(queries, z, labels) == pytest.approx(np.mean(hits))


def test_the_order_and_the_batches_do_not_mix_up_the_rows(sets):
    torch.manual_seed(0)
    model, test = Embedder("resnet10", dim=8, image_shape=sets[1].shape, width=4), sets[1]
    for batch_size in (7, 64, 1000):
        z = embed_attacked(model, test, FeatureAttack(2, eps=0, steps=1), batch_size=batch_size)
        torch.testing.assert_close(z, embed(model, test), atol=1e-5, rtol=0)


def test_the_attack_goes_through_the_domain_that_answers(sets):
    torch.manual_seed(0)
    model, test = convert_multi_norm(Embedder("resnet10", dim=8, image_shape=sets[1].shape, width=4)), sets[1].subset(range(24))
    for norm in model.modules():
        if hasattr(norm, "domain_norms"):
            norm.domain_norms["multi"].running_mean += 0.5
    seen = []
    hook = model.backbone.bn1.register_forward_pre_hook(lambda m, _: seen.append(m.router.route[0][0]))
    embed_attacked(model, test, FeatureAttack(2, steps=2), domain="multi")
    hook.remove()
    assert set(seen) == {"multi"} and len(seen) == 4  # targets, two steps, the answer
    x = test.batch(range(24))[0]
    with torch.no_grad(), use_domain(model.eval(), "multi"):
        expected = model(x)
    torch.testing.assert_close(embed(model, test, "multi"), expected, atol=1e-5, rtol=0)


def test_compare_writes_what_it_returns(runs, sets):
    table = compare(*runs, sets[1], eps=4 / 255, steps=2)
    assert list(table.columns) == ["before", "after", "gain", "direction"]
    assert {"recall_at_1", "recall_at_8", "map_at_r", "recall_at_1_single", "recall_at_1_multi", "pi_intra", "pi_inter", "pi_ratio", "rho"} <= set(table.index)
    np.testing.assert_allclose(table["gain"], table["after"] - table["before"])
    for run, column in zip(runs, ("before", "after"), strict=True):
        assert run.results["test"]["metrics"] == table[column].to_dict()
        assert run.results["test"]["settings"]["eps"] == 4 / 255
        assert run.snapshot("test").keys == sets[1].keys


def coarse_patterns(seed: int) -> ImageSet:
    "30 classes of 8 noisy copies of a pattern of 4x4 blocks: a few epochs learn to tell such classes apart, new ones too."
    g = torch.Generator().manual_seed(seed)
    blocks = F.interpolate(torch.rand(30, 1, 4, 4, generator=g), size=16)
    images = (blocks[:, None] + 0.2 * torch.randn(30, 8, 1, 16, 16, generator=g)).flatten(0, 1).clamp(0, 1)
    return ImageSet.from_arrays(images, torch.arange(30).repeat_interleave(8), class_names=[f"{seed}-{c}" for c in range(30)])


def test_a_stronger_attack_finds_less(tmp_path):
    run = fit(coarse_patterns(0), "plain", tmp_path / "run", epochs=6, width=8, dim=16, batch_size=24, per_class=3, progress=False)
    recalls = [evaluate(run, coarse_patterns(1), eps=eps / 255, steps=5)["recall_at_1_single"] for eps in (0, 8, 16)]
    assert 0.4 < recalls[0] and recalls[0] - recalls[1] > 0.1 and recalls[1] - recalls[2] > 0.05
    assert recalls[0] == pytest.approx(run.results["test"]["metrics"]["recall_at_1"], abs=1e-6)


def test_seen_classes_are_told_and_new_ones_are_not(runs, sets):
    train, test = sets
    with pytest.warns(UserWarning, match="test classes were in the training of run 'plain'"):
        evaluate(runs[0], train, eps=0, steps=0, name="seen")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(runs[0], test, eps=0, steps=0)


def test_images_of_another_shape_are_refused(runs):
    colour = glyphs(classes=10, per_class=4, size=24)
    colour.images = colour.images.expand(-1, 3, -1, -1)
    with pytest.raises(ValueError, match=r"wants \(n, 1, height, width\)"):
        evaluate(runs[0], colour)


def test_a_folder_without_a_checkpoint_says_so(runs, sets, tmp_path):
    (tmp_path / "config.json").write_text((runs[0].path / "config.json").read_text())
    with pytest.raises(RunError, match="has no model yet, 0 of 2 epochs"):
        evaluate(tmp_path, sets[1])


def test_evaluate_measures_the_domain_the_checkpoint_and_the_targets_that_it_names(sets, tmp_path, monkeypatch):
    train, test = sets
    run = fit(train, "mdprop", tmp_path / "run", epochs=4, lr=0.03, width=4, dim=8, batch_size=24, per_class=3, progress=False)
    best, last = (embed(run.model(checkpoint), test) for checkpoint in ("best", "last"))
    attacks = []

    def spy(model, images, attack, domain=None, **options):
        attacks.append((attack.targets, attack.eps, attack.steps, domain))
        return embed(model, images, domain)

    monkeypatch.setattr("mdprop.robustness.embed_attacked", spy)
    evaluate(run, test, eps=0.01, steps=3)
    np.testing.assert_array_equal(run.snapshot("test").z, best.numpy())
    if load_tensors(run.path / "best.safetensors")[1]["epoch"] < 4:
        assert not np.array_equal(run.snapshot("test").z, last.numpy())
    evaluate(run, test, eps=0.01, steps=3, domain="attacked", name="attacked")
    np.testing.assert_array_equal(run.snapshot("attacked").z, embed(run.model(), test, "attacked").numpy())
    assert not np.array_equal(run.snapshot("attacked").z, best.numpy())
    assert attacks == [(k, 0.01, 3, domain) for domain in (None, "attacked") for k in (1, 5)]


def test_official_queries_search_their_gallery_alone():
    data = glyphs(classes=8)
    roles = ["query" if i % 3 == 0 else "gallery" for i in range(len(data))]
    official = ImageSet(data.images, data.labels, data.class_names, data.keys, split="official", roles=roles)
    model = Embedder("resnet10", 16, data.shape, width=4).eval()
    found, z = evaluate(model, official, steps=2), embed(model, data)
    asked = torch.arange(len(data)) % 3 == 0
    expected = retrieval_metrics(z[asked], data.labels[asked], gallery=z[~asked], gallery_labels=data.labels[~asked])
    assert {name: found[name] for name in expected} == expected != retrieval_metrics(z, data.labels)
    moved = embed_attacked(model, data.subset(asked), FeatureAttack(5, 8 / 255, 2))
    nearest = (moved @ z[~asked].T).argmax(1)
    assert found["recall_at_1_multi"] == pytest.approx((data.labels[~asked][nearest] == data.labels[asked]).float().mean().item())


def test_a_few_attacked_queries_search_among_all_images():
    data = glyphs(classes=6)
    model = Embedder("resnet10", 16, data.shape, width=4).eval()
    found, z, rows = evaluate(model, data, steps=2, attacked=7), embed(model, data), torch.tensor(spread_evenly(7, len(data)))
    queries = embed_attacked(model, data.subset(rows), FeatureAttack(1, 8 / 255, 2))
    nearest = (queries @ z.T).scatter(1, rows[:, None], -2).argmax(1)
    assert found["recall_at_1_single"] == pytest.approx((data.labels[nearest] == data.labels[rows]).float().mean().item())
    assert found["map_at_r"] == evaluate(model, data, steps=0)["map_at_r"]


def test_validation_classes_count_as_seen_and_names_stay_apart(runs, sets):
    train, test = sets
    held = train.keep_classes([train.class_names.index(name) for name in runs[0].config["data"]["valid"]["class_names"]])
    with pytest.warns(UserWarning, match="were in the training"):
        evaluate(runs[0], held, eps=0, steps=0, name="set-a")
    evaluate(runs[0], test, eps=0, steps=0, name="set-b")
    assert runs[0].snapshot("set-a").keys == held.keys and runs[0].snapshot("set-b").keys == test.keys
    for name in ("valid", "../up", "a/b", ""):
        with pytest.raises(RunError, match="cannot name a snapshot"):
            evaluate(runs[0], test, eps=0, steps=0, name=name)


def test_a_policy_that_needs_classes_gets_those_of_the_images(sets):
    torch.manual_seed(0)
    model, test = Embedder("resnet10", dim=8, image_shape=sets[1].shape, width=4).eval(), sets[1]
    recall = {
        policy: attacked_recall(embed_attacked(model, test, FeatureAttack(1, 4 / 255, 5, policy=policy)), embed(model, test), test.labels)
        for policy in ("own_class", "random", "other_class")
    }
    assert recall["own_class"] > 2 * max(recall["random"], recall["other_class"])
