"""The further rank measures, intervals and AMI, against naive loops, pytorch-metric-learning and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import adjusted_mutual_info_score, ndcg_score

from mdprop import retrieval
from mdprop.retrieval import MEASURES, bootstrap_intervals, compare_groupings, nearest_neighbours, query_scores, retrieval_metrics

SIGNS = np.stack(np.meshgrid(*[[1, -1]] * 4), axis=-1).reshape(-1, 4)
CORNERS = np.concatenate([np.eye(4), -np.eye(4), SIGNS / 2])  # inner products exact in float32: ties are ties


def clusters(n=300, classes=12, dim=16, noise=0.35, seed=0):
    "Noisy classes of unequal size."
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n, p=random.dirichlet(np.ones(classes) * 3)) * 1_000_003 - 5
    centres = {label: random.normal(size=dim) / dim**0.5 for label in np.unique(labels)}
    z = np.stack([centres[label] for label in labels]) + noise * random.normal(size=(n, dim))
    return z / np.linalg.norm(z, axis=1, keepdims=True), labels


def naive(z, labels, ks, gallery=None, gallery_labels=None):
    "The definitions, query by query over the whole ranked gallery; NaN without positives."
    own = gallery is None
    rows, of_row = (z, labels) if own else (gallery, gallery_labels)
    names = [*(f"{name}_at_{k}" for k in ks for name in ("recall", "precision", "ndcg")), "mrr", "r_precision", "map_at_r"]
    found = {name: np.full(len(z), np.nan) for name in names}
    for i in range(len(z)):
        similarity = rows @ z[i]
        ranked = sorted((j for j in range(len(rows)) if not (own and j == i)), key=lambda j, s=similarity: (-s[j], j))
        rel = [of_row[j] == labels[i] for j in ranked]
        r = sum(rel)
        if r == 0:
            continue
        for k in ks:
            found[f"recall_at_{k}"][i] = any(rel[:k])
            found[f"precision_at_{k}"][i] = sum(rel[:k]) / k
            ideal = sum(1 / np.log2(j + 2) for j in range(min(k, r)))
            found[f"ndcg_at_{k}"][i] = sum(hit / np.log2(j + 2) for j, hit in enumerate(rel[:k])) / ideal
        found["mrr"][i] = 1 / (1 + rel.index(True))
        found["r_precision"][i] = sum(rel[:r]) / r
        found["map_at_r"][i] = sum(sum(rel[: j + 1]) / (j + 1) for j in range(r) if rel[j]) / r
    return found


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(mine[name], values, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("noise", [0.35, 3.0])  # 3: most queries find their first positive far down
def test_every_measure_equals_naive_loops(noise):
    z, labels = clusters(noise=noise)
    z = np.r_[z, z[:1]]
    labels = np.r_[labels, -77]  # a class of one
    ks = (1, 3, 8, 30)
    mine = query_scores(z, labels, ks, measures=MEASURES)
    assert np.isnan(mine["mrr"][-1])
    assert_same(mine, naive(z, labels, ks))


def test_query_gallery_protocol_equals_naive_loops():
    z, labels = clusters(noise=1, seed=2)
    labels[:3] = 5  # queries whose class is not in the gallery
    mine = query_scores(z[:100], labels[:100], (1, 4), gallery=z[100:], gallery_labels=labels[100:], measures=MEASURES)
    assert_same(mine, naive(z[:100], labels[:100], (1, 4), z[100:], labels[100:]))
    assert np.isnan(mine["precision_at_4"][:3]).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3)), min_size=5, max_size=40))
def test_measures_with_ties_and_duplicates_equal_naive_loops(rows):
    z, labels = CORNERS[[row for row, _ in rows]], np.array([label for _, label in rows])
    assert_same(query_scores(z, labels, (1, 2, 50), measures=MEASURES), naive(z, labels, (1, 2, 50)))


def test_first_rank_counts_by_blocks_and_leaves_the_query_out():
    z, labels = clusters(noise=3)
    rows = torch.tensor(z, dtype=torch.float32)
    expected = 1 / naive(z, labels, (1,))["mrr"]
    for entries, columns in (1, 2**16), (1_000, 2**16), (2**23, 2**16), (1_000, 7), (2**23, 100):
        assert (retrieval._first_rank(rows, rows, labels, labels, np.arange(len(z)), entries, columns) == expected).all()


def test_mrr_equals_pytorch_metric_learning_and_ndcg_scikit_learn():
    z, labels = clusters(noise=1, seed=4)
    codes = np.unique(labels, return_inverse=True)[1]
    calculator = AccuracyCalculator(include=("mean_reciprocal_rank", "precision_at_1"), k=len(z) - 1)
    theirs = calculator.get_accuracy(torch.tensor(z).float(), torch.tensor(codes))["mean_reciprocal_rank"]
    mine = query_scores(z, labels, (10,), measures=["mrr", "ndcg"])
    assert np.nanmean(mine["mrr"]) == pytest.approx(theirs, abs=1e-6)
    similarity, same = z @ z.T, labels[:, None] == labels
    for i in range(0, len(z), 17):
        others = np.arange(len(z)) != i
        assert mine["ndcg_at_10"][i] == pytest.approx(ndcg_score(same[i:i + 1, others], similarity[i:i + 1, others], k=10), abs=1e-9)


def test_a_perfect_and_a_hopeless_space():
    z, labels = np.eye(4)[[0, 0, 0, 1, 1, 1]], np.array([3, 3, 3, 9, 9, 9])
    assert set(retrieval_metrics(z, labels, (1, 2), measures=MEASURES).values()) == {1.0}
    crossed = retrieval_metrics(z, [0, 1, 2, 0, 1, 2], (1, 2), measures=MEASURES)
    assert crossed["ndcg_at_2"] == crossed["precision_at_2"] == crossed["map_at_r"] == 0
    assert crossed["mrr"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 3, 1 / 4, 1 / 5]))


def test_only_what_is_asked_for_is_searched_and_named():
    z, labels = clusters()
    near = nearest_neighbours(z, 2)
    assert retrieval_metrics(near, labels, (1, 2), measures=["recall", "precision", "ndcg"]).keys() == {
        f"{name}_at_{k}" for name in ("recall", "precision", "ndcg") for k in (1, 2)}  # no R neighbours needed
    with pytest.raises(ValueError, match=r"need .* neighbours per query"):
        retrieval_metrics(near, labels, (1, 2))
    for wrong in "mrr", [], ["recal"]:
        with pytest.raises(ValueError, match="measures="):
            retrieval_metrics(near, labels, measures=wrong)


def test_memory_of_mrr_alone_does_not_grow_with_the_class(monkeypatch):
    asked = []
    search = retrieval._search
    monkeypatch.setattr(retrieval, "_search", lambda queries, gallery, k, own: asked.append(k) or search(queries, gallery, k, own))
    z, _ = clusters(n=2_000)
    retrieval_metrics(z, np.arange(2_000) % 2, measures=["mrr", "recall"])
    assert set(asked) == {8}


# Intervals


def test_bootstrap_equals_a_loop_over_drawn_classes():
    random = np.random.default_rng(1)
    labels, score = random.integers(0, 9, 200) * 7 - 3, random.random(200)
    score[labels == -3] = np.nan
    (found,) = bootstrap_intervals({"s": score}, labels, draws=300, seed=5, level=0.8).values()
    names = np.unique(labels[labels != -3])
    weights = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=300)
    means = [np.concatenate([np.tile(score[labels == name], times) for name, times in zip(names, row, strict=True)]).mean() for row in weights]
    assert found == pytest.approx((np.nanmean(score), *np.quantile(means, [0.1, 0.9])), abs=1e-12)


def test_intervals_cover_at_their_level():
    random, hit, rounds = np.random.default_rng(0), 0, 300
    for _ in range(rounds):
        of_class = random.normal(0.5, 0.1, 60)
        labels = np.repeat(np.arange(60), random.integers(2, 9, 60))
        found = bootstrap_intervals({"s": of_class[labels] + random.normal(0, 0.05, len(labels))}, labels, draws=400)["s"]
        hit += found.low <= 0.5 <= found.high
    assert 0.90 <= hit / rounds <= 0.98


def test_the_pair_is_the_interval_of_the_difference_on_the_same_draws():
    z, labels = clusters()
    worse, _ = clusters(noise=0.8)
    a, b = query_scores(z, labels), query_scores(worse, labels)
    paired = bootstrap_intervals(a, labels, minus=b, seed=3)
    assert paired == bootstrap_intervals({name: a[name] - b[name] for name in a}, labels, seed=3)
    alone = bootstrap_intervals(a, labels, seed=3)["map_at_r"]
    assert paired["map_at_r"].low > 0 and alone.low < alone.mean < alone.high
    assert alone.mean == pytest.approx(retrieval_metrics(z, labels)["map_at_r"])
    assert bootstrap_intervals(a, labels, seed=3) == bootstrap_intervals(a, labels, seed=3) != bootstrap_intervals(a, labels, seed=4)


def test_draws_in_blocks_are_the_same_as_at_once():
    labels = np.arange(5_000)  # 838 draws a block
    score = {"s": np.random.default_rng(0).random(5_000)}
    found = bootstrap_intervals(score, labels, draws=1_000)["s"]
    weights = np.random.default_rng(0).multinomial(5_000, np.full(5_000, 1 / 5_000), size=1_000)
    assert found[1:] == pytest.approx(np.quantile(weights @ score["s"] / 5_000, [0.025, 0.975]), abs=1e-12)


@pytest.mark.parametrize("change, text", [
    (dict(level=1.0), "level=1.0"), (dict(draws=0), "draws=0"), (dict(scores={}), "one at least"),
    (dict(minus={"other": np.ones(4)}), "same names"), (dict(minus={"s": np.array([1, 1, 1, np.nan])}), "different queries"),
    (dict(minus={"s": np.ones(3)}), "different queries"), (dict(labels=np.zeros(4, int)), "1 class"), (dict(labels=np.zeros(3, int)), "labels of shape"),
])
def test_intervals_refuse(change, text):
    with pytest.raises(ValueError, match=text):
        bootstrap_intervals(**(dict(scores={"s": np.ones(4)}, labels=np.array([0, 0, 1, 1])) | change))


# Adjusted mutual information


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 3)), min_size=1, max_size=40))
def test_ami_equals_scikit_learn(rows):
    a, b = np.array(rows).T
    expected = adjusted_mutual_info_score(a, b)
    if len(np.unique(a)) == len(a) or len(np.unique(b)) == len(b):
        return  # one of them is all singletons: 0/0, settled by rounding in scikit-learn; see below
    assert compare_groupings(a, b)["ami"] == pytest.approx(expected, abs=1e-9)


def test_ami_at_the_edges():
    assert compare_groupings([4, 5, 6], [1, 2, 3])["ami"] == 1
    assert compare_groupings([4, 4, 4], [1, 2, 3])["ami"] == 0
    assert compare_groupings([4, 4, 5], [1, 2, 3])["ami"] == pytest.approx(0, abs=1e-12)


def test_ami_of_many_groups_equals_scikit_learn():
    random = np.random.default_rng(0)
    a, b = random.zipf(1.5, 3_000) % 200, random.integers(0, 50, 3_000)
    b[:1_500] = a[:1_500]
    assert compare_groupings(a, b)["ami"] == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)
