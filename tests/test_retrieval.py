"""Retrieval against naive loops in float64, pytorch-metric-learning and scikit-learn; ties, duplicates and edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import normalized_mutual_info_score

from mdprop import retrieval
from mdprop.retrieval import (
    Neighbours, as_embeddings, as_labels, clustering_metrics, compare_groupings, nearest_neighbours, query_scores, retrieval_metrics,
)

# Unit vectors whose inner products are exact in float32 (0, +-1/2, +-1): ties are ties, whoever multiplies.
SIGNS = np.stack(np.meshgrid(*[[1, -1]] * 4), axis=-1).reshape(-1, 4)
CORNERS = np.concatenate([np.eye(4), -np.eye(4), SIGNS / 2])
SEARCHES = [retrieval._search_faiss, retrieval._search_torch]


def clusters(n=300, classes=12, dim=16, noise=0.35, seed=0):
    "Noisy classes of unequal size, labels neither contiguous nor sorted."
    random = np.random.default_rng(seed)
    labels = random.choice(np.arange(classes) * 1_000_003 - 5, n, p=random.dirichlet(np.ones(classes) * 3))
    centres = {label: random.normal(size=dim) / dim**0.5 for label in np.unique(labels)}
    z = np.stack([centres[label] for label in labels]) + noise * random.normal(size=(n, dim))
    return z / np.linalg.norm(z, axis=1, keepdims=True), labels


def naive_order(z, gallery=None):
    "For each query all gallery rows by (-similarity, index), without itself where the gallery is the queries."
    similarity = z @ (z if gallery is None else gallery).T
    return [sorted((j for j in range(similarity.shape[1]) if gallery is not None or j != i), key=lambda j, i=i: (-similarity[i, j], j))
            for i in range(len(z))]


def naive_scores(order, labels, gallery_labels, own, ks):
    "The definitions, query by query and rank by rank."
    found = {name: [] for name in [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r"]}
    for i, ranked in enumerate(order):
        r = sum(label == labels[i] for label in gallery_labels) - own
        if r == 0:
            continue
        relevant = [gallery_labels[j] == labels[i] for j in ranked]
        for k in ks:
            found[f"recall_at_{k}"].append(any(relevant[:k]))
        found["r_precision"].append(sum(relevant[:r]) / r)
        found["map_at_r"].append(sum(sum(relevant[: j + 1]) / (j + 1) for j in range(r) if relevant[j]) / r)
    return {name: np.mean(values) for name, values in found.items()}


def assert_close(mine, theirs, tolerance=1e-6):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("search", SEARCHES)
def test_scores_equal_naive_loops(monkeypatch, search, dtype):
    z, labels = clusters()
    monkeypatch.setattr(retrieval, "_search", search)
    ks = (1, 2, 4, 8, 30)
    assert_close(retrieval_metrics(z.astype(dtype), labels, ks), naive_scores(naive_order(z), labels, labels, 1, ks))


@pytest.mark.parametrize("search", SEARCHES)
def test_query_gallery_equals_naive_loops(monkeypatch, search):
    z, labels = clusters(seed=3)
    monkeypatch.setattr(retrieval, "_search", search)
    mine = retrieval_metrics(z[:100], labels[:100], gallery=z[100:], gallery_labels=labels[100:])
    assert_close(mine, naive_scores(naive_order(z[:100], z[100:]), labels[:100], labels[100:], 0, (1, 2, 4, 8)))


@pytest.mark.parametrize("gallery", [False, True])
def test_agrees_with_pytorch_metric_learning(gallery):
    z, labels = clusters(n=800, classes=30, seed=1)
    codes = np.unique(labels, return_inverse=True)[1]  # it casts labels to float32
    calculator = AccuracyCalculator(include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count")
    x, y = torch.tensor(z).float(), torch.tensor(codes)
    if gallery:
        theirs = calculator.get_accuracy(x[:300], y[:300], x[300:], y[300:])
        mine = retrieval_metrics(z[:300], labels[:300], (1,), gallery=z[300:], gallery_labels=labels[300:])
    else:
        theirs, mine = calculator.get_accuracy(x, y), retrieval_metrics(z, labels, (1,))
    names = {"recall_at_1": "precision_at_1", "r_precision": "r_precision", "map_at_r": "mean_average_precision_at_r"}
    assert_close(mine, {name: theirs[other] for name, other in names.items()})


def test_one_sample_classes_are_left_out_as_pytorch_metric_learning_does():
    z, _ = clusters(n=60)
    labels = np.array([0] * 20 + [1] * 20 + list(range(2, 22)))
    calculator = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count")
    theirs = calculator.get_accuracy(torch.tensor(z).float(), torch.tensor(labels))
    mine = retrieval_metrics(z, labels, (1,))
    assert mine["recall_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert mine["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert np.isnan(query_scores(z, labels)["map_at_r"][40:]).all()


def test_with_and_without_one_sample_classes():
    z, _ = clusters(n=120)
    labels = np.array([0] * 20 + [1] * 20 + list(range(2, 82)))
    shared = np.isin(labels, [0, 1])
    kept, left_out = retrieval_metrics(z, labels), retrieval_metrics(z[shared], labels[shared])
    assert_close(kept, naive_scores(naive_order(z), labels, labels, 1, (1, 2, 4, 8)))  # its 80 lonely rows are found by mistake
    assert_close(left_out, naive_scores(naive_order(z[shared]), labels[shared], labels[shared], 1, (1, 2, 4, 8)))
    assert all(kept[name] < left_out[name] for name in ("recall_at_1", "r_precision", "map_at_r"))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 23), min_size=2, max_size=40), st.data())
def test_ties_and_duplicates_stand_by_index_and_nobody_finds_itself(rows, data):
    z = CORNERS[rows]
    k = data.draw(st.integers(1, len(z) - 1))
    expected = [ranked[:k] for ranked in naive_order(z)]
    x = torch.tensor(z, dtype=torch.float32)
    for search in SEARCHES:
        indices, similarities = search(x, x, k, np.arange(len(x)))
        assert indices.tolist() == expected, search.__name__
        assert (similarities == np.take_along_axis((z @ z.T).astype(np.float32), indices, 1)).all()
    by_gallery = [ranked[:k] for ranked in naive_order(z, z)]
    for search in SEARCHES:
        assert search(x, x, k, None)[0].tolist() == by_gallery
    assert nearest_neighbours(z, k).indices.tolist() == expected


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 4)), min_size=3, max_size=40))
def test_scores_with_ties_equal_naive_loops(rows):
    z, labels = CORNERS[[row for row, _ in rows]], np.array([label for _, label in rows])
    if np.unique(labels, return_counts=True)[1].max() < 2:
        with pytest.raises(ValueError, match="every class has a single sample"):
            retrieval_metrics(z, labels)
    else:
        assert_close(retrieval_metrics(z, labels), naive_scores(naive_order(z), labels, labels, 1, (1, 2, 4, 8)))


def test_torch_search_by_small_blocks():
    z = torch.tensor(clusters()[0]).float()
    for own in None, np.arange(len(z)):
        whole, blocks = retrieval._search_torch(z, z, 20, own), retrieval._search_torch(z, z, 20, own, entries=700)
        assert (whole[0] == blocks[0]).all()


def test_torch_search_across_gallery_blocks():
    random = np.random.default_rng(0)
    gallery = torch.tensor(CORNERS[random.integers(0, 24, 2**16 + 500)], dtype=torch.float32)
    own = np.array([3, 2**16 - 1, 2**16, 2**16 + 7])
    indices, _ = retrieval._search_torch(gallery[own], gallery, 6_000, own)
    for row, i in zip(indices, own, strict=True):
        similarity = (gallery @ gallery[i]).numpy()
        similarity[i] = -2
        assert (row == np.lexsort((np.arange(len(similarity)), -similarity))[:6_000]).all()


def test_autocast_around_the_call_changes_nothing():
    z = torch.tensor(clusters()[0]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = retrieval._search_torch(z, z, 5, np.arange(len(z)))
    assert (inside[1] == retrieval._search_torch(z, z, 5, np.arange(len(z)))[1]).all()


def test_memory_is_bounded_where_a_class_is_large(monkeypatch):
    z, _ = clusters(n=6_000, dim=4)
    labels = np.r_[np.zeros(5_000, int), np.arange(1_000) // 2 + 1]
    asked = []

    def spy(queries, gallery, k, own):
        asked.append((len(queries), k))
        return retrieval._search_faiss(queries, gallery, k, own)

    monkeypatch.setattr(retrieval, "_search", spy)
    retrieval_metrics(z, labels)
    assert max(rows * k for rows, k in asked) <= 2**21
    assert asked[-1][1] == 8  # small classes do not pay for the large one
    assert sum(rows for rows, _ in asked) == 6_000


def test_order_of_rows_does_not_matter():
    z, labels = clusters(seed=5)
    shuffled = np.random.default_rng(0).permutation(len(z))
    assert_close(retrieval_metrics(z[shuffled], labels[shuffled]), retrieval_metrics(z, labels), 1e-12)


def test_labels_above_2_to_24_stay_apart():
    z, labels = clusters()
    codes = np.unique(labels, return_inverse=True)[1]
    assert retrieval_metrics(z, codes + 2**40) == retrieval_metrics(z, codes)
    assert as_labels([2**24, 2**24 + 1], 2).tolist() == [2**24, 2**24 + 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_taken(dtype):
    z = torch.tensor(clusters()[0]).to(dtype).requires_grad_()
    rows = as_embeddings(z)
    assert rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(z)), atol=1e-6)
    assert retrieval_metrics(z, clusters()[1])["recall_at_1"] == pytest.approx(retrieval_metrics(*clusters())["recall_at_1"], abs=0.02)


def test_not_unit_rows_are_refused_or_normalised():
    z, labels = clusters()
    with pytest.raises(ValueError, match=r"row 0 of the embeddings has length 2, not 1: pass normalize=True"):
        retrieval_metrics(2 * z, labels)
    assert_close(retrieval_metrics(z * np.arange(1, len(z) + 1)[:, None], labels, normalize=True), retrieval_metrics(z, labels))
    for bad, text in (np.nan, "NaN"), (np.inf, "NaN or infinity"):
        broken = z.copy(); broken[7, 2] = bad
        for normalize in False, True:
            with pytest.raises(ValueError, match=f"row 7 .*{text}"):
                nearest_neighbours(broken, 3, normalize=normalize)


def test_inputs_stay_as_they_are_and_the_answer_is_locked():
    z, labels = clusters()
    before = z.copy(), labels.copy()
    near = nearest_neighbours(z, 5)
    retrieval_metrics(z, labels)
    assert (z == before[0]).all() and (labels == before[1]).all()
    for array in near.indices, near.similarities:
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


@pytest.mark.parametrize("change, text", [
    (dict(indices=np.array([[1, 1], [0, 2], [0, 1]])), "not in order"),
    (dict(indices=np.array([[1, 3], [0, 2], [0, 1]])), "gallery of 3 rows"),
    (dict(indices=np.array([[1, 0], [0, 2], [0, 1]])), "not in order|lists itself"),
    (dict(indices=np.array([[0, 1], [0, 2], [0, 1]])), "lists itself"),
    (dict(similarities=np.full((3, 2), np.nan, np.float32)), "NaN"),
    (dict(similarities=np.zeros((3, 2))), "float32"),
    (dict(similarities=np.zeros((3, 1), np.float32)), "one shape"),
    (dict(gallery_size=4), "lists itself"),
])
def test_neighbours_check_themselves(change, text):
    right = dict(indices=np.array([[1, 2], [0, 2], [0, 1]]), similarities=np.zeros((3, 2), np.float32), gallery_size=3, leave_one_out=True)
    Neighbours(**right)
    with pytest.raises(ValueError, match=text):
        Neighbours(**(right | change))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=2, max_size=40))
def test_groupings_equal_scikit_learn_and_pairs(rows):
    a, b = np.array(rows).T
    found = compare_groupings(a, b)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    pairs = [(a[i] == a[j], b[i] == b[j]) for i in range(len(a)) for j in range(i)]
    right, said, true = (sum(map(bool, column)) for column in ([x and y for x, y in pairs], [y for _, y in pairs], [x for x, _ in pairs]))
    if true:
        precision, recall = right / said if said else 0, right / true
        assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall) if right else 0, abs=1e-12)
    else:
        assert np.isnan(found["f1"])


def test_clustering_is_seeded_and_uses_every_row():
    z, labels = clusters(n=2_000, classes=3)  # 667 a centre: faiss alone would draw 256 of them
    assert clustering_metrics(z, labels, seed=1) == clustering_metrics(z, labels, seed=1)
    tight, codes = clusters(n=400, classes=6, noise=0.02)
    assert clustering_metrics(tight, codes)["nmi"] > 0.85
    assert clustering_metrics(CORNERS[[0, 0, 4, 4]], [8, 8, -1, -1]) == {"nmi": 1.0, "ami": 1.0, "f1": 1.0}
