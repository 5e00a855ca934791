"""Searches of every kind find the same: pairs multiplied once, files read by blocks, streams; an index says what it missed."""

import tracemalloc

import numpy as np
import pytest
import torch

from mdprop import retrieval
from mdprop.retrieval import INDEXES, MEASURES, Neighbours, nearest_neighbours, query_scores, retrieval_metrics, store_embeddings

SIGNS = np.stack(np.meshgrid(*[[1, -1]] * 4), axis=-1).reshape(-1, 4)
CORNERS = np.concatenate([np.eye(4), -np.eye(4), SIGNS / 2])  # inner products exact in float32: ties are ties


def sphere(n, dim, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def on_disk(z, path):
    np.save(path, z)
    return np.load(path, mmap_mode="r")


# Each pair once


@pytest.mark.parametrize("tile", [64, 100, 1_024])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_pairs_multiplied_once_give_the_list_of_the_plain_search(k, tile):
    z = torch.tensor(np.r_[CORNERS[np.random.default_rng(0).integers(0, 24, 150)], sphere(1_100, 4)], dtype=torch.float32)
    found = retrieval._search_self(z, k, tile)
    plain = retrieval._search_torch(z, z, k, np.arange(len(z)))
    np.testing.assert_allclose(found[1], plain[1], atol=1e-6)
    exact = found[1] == plain[1]
    assert (found[0] == plain[0])[:150][exact[:150].all(axis=1)].mean() > 0.99
    Neighbours(*found, len(z), True)


def test_pairs_with_exact_ties_stand_by_index():
    z = torch.tensor(CORNERS[np.random.default_rng(1).integers(0, 24, 700)], dtype=torch.float32)
    for k in 1, 5, 60:
        found, plain = retrieval._search_self(z, k, tile=128), retrieval._search_torch(z, z, k, np.arange(700))
        assert (found[0] == plain[0]).all() and (found[1] == plain[1]).all()


def test_rows_whose_guess_was_too_high_are_searched_again(monkeypatch):
    z = torch.tensor(sphere(900, 8))
    guess = retrieval._likely_below(z, 9)
    monkeypatch.setattr(retrieval, "_likely_below", lambda rows, k: torch.where(torch.arange(900) % 3 == 0, 0.999, guess))
    np.testing.assert_allclose(retrieval._search_self(z, 9, 256)[1], retrieval._search_torch(z, z, 9, np.arange(900))[1], atol=1e-6)


def test_a_collapsed_space_gives_up_within_its_budget_and_is_still_right(monkeypatch):
    z = torch.ones(4_200, 1)
    assert retrieval._search_self(z, 3, budget=10_000) is None
    monkeypatch.setattr(retrieval, "_search_self", lambda rows, k: None)
    assert nearest_neighbours(z, 2).indices[[0, 1, 4_199]].tolist() == [[1, 2], [0, 2], [0, 1]]


def test_large_self_search_is_the_one_by_pairs_and_scores_agree(monkeypatch):
    z, labels = sphere(4_500, 6), np.arange(4_500) % 150
    by_pairs = query_scores(z, labels, measures=MEASURES)
    assert retrieval_metrics(nearest_neighbours(z, 29), labels) == pytest.approx(retrieval_metrics(z, labels), abs=1e-12)
    monkeypatch.setattr(retrieval, "_search_all", lambda rows, k: None)
    for name, values in query_scores(z, labels, measures=MEASURES).items():
        assert np.abs(values - by_pairs[name]).mean() < 1e-4, name


def test_keys_keep_order_at_the_ends():
    values = np.array([1.0, 0.5, 1e-30, 0.0, -0.0, -1e-30, -0.5, -1.0], np.float32)
    keys = retrieval._pack(np.full(8, 1_023), values, np.arange(8) + 2**21 - 9)
    assert (np.diff(keys) > 0).all() and (keys >= 0).all()
    column, back = retrieval._unpack(keys)
    assert (column == np.arange(8) + 2**21 - 9).all() and (back == values).all()
    assert retrieval._pack(np.array([1]), values[-1:], np.array([5])) < retrieval._pack(np.array([2]), values[:1], np.array([0]))


def by_force(z, k):
    "Similarity in float64, then index; for rows whose products are exact."
    similarity = (z.double() @ z.double().T).numpy()
    np.fill_diagonal(similarity, -2)
    indices = np.lexsort((np.broadcast_to(np.arange(len(z)), similarity.shape), -similarity), axis=-1)[:, :k]
    return indices, np.take_along_axis(similarity, indices, axis=1)


ADVERSARIES = {  # rows with exact products, n
    "all equal": lambda random: np.tile(CORNERS[9], (2_500, 1)),
    "all equal but one": lambda random: np.r_[np.tile(CORNERS[0], (2_499, 1)), -CORNERS[:1]],
    "a thousand of each": lambda random: np.repeat(CORNERS[:3], 1_000, axis=0),
    "a thousand of each, mixed": lambda random: CORNERS[random.permutation(np.repeat([0, 1, 9], 1_000))],
    "one large heap and pairs": lambda random: np.r_[np.tile(CORNERS[0], (2_000, 1)), np.repeat(CORNERS[1:], 2, axis=0)],
    "two poles": lambda random: np.repeat(CORNERS[[0, 4]], [40, 2_460], axis=0),
    "rare directions last": lambda random: np.r_[CORNERS[random.integers(0, 4, 2_476)], CORNERS],
}


@pytest.mark.parametrize("k", [1, 39, 40, 300])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_pairs_against_inputs_that_fool_the_guess(name, k):
    z = torch.tensor(ADVERSARIES[name](np.random.default_rng(0)), dtype=torch.float32)
    found, truth = retrieval._search_self(z, k, tile=512), by_force(z, k)
    assert (found[0] == truth[0]).all() and (found[1] == truth[1]).all()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_pairs_for_all_the_others(name):
    z = torch.tensor(ADVERSARIES[name](np.random.default_rng(1))[-300:], dtype=torch.float32)
    found, truth = retrieval._search_self(z, 299, tile=64), by_force(z, 299)
    assert (found[0] == truth[0]).all() and (found[1] == truth[1]).all()


@pytest.mark.parametrize("k", [1, 8, 60])
def test_pairs_where_clusters_are_smaller_than_the_list(k):
    random = np.random.default_rng(3)
    z = np.repeat(sphere(1_200, 24), 3, axis=0) + 1e-3 * random.normal(size=(3_600, 24))  # triples: the guess sees few of a row's nearest
    z = np.r_[z, np.repeat(sphere(1, 24, seed=9), 1_500, axis=0)]  # and one point 1,500 times over
    z = torch.tensor(z / np.linalg.norm(z, axis=1, keepdims=True), dtype=torch.float32)
    indices, similarities = retrieval._search_self(z, k)
    Neighbours(indices, similarities, len(z), True)
    truth = by_force(z, k)[1]
    own = (z.double()[:, None] * z.double()[torch.as_tensor(indices)]).sum(dim=2).numpy()
    np.testing.assert_allclose(similarities, truth, atol=1e-6)  # nobody nearer was missed
    np.testing.assert_allclose(similarities, own, atol=1e-6)


def test_a_collapsed_space_of_real_size_is_exact():
    near = nearest_neighbours(torch.nn.functional.normalize(torch.ones(6_000, 16), dim=1), 3)  # gives up pairs by its own budget
    assert (near.indices[3:] == [0, 1, 2]).all() and near.indices[:3].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3]]


# Files and streams


def test_a_mapped_file_gives_what_the_array_gives(tmp_path):
    z, labels = CORNERS[np.random.default_rng(0).integers(0, 24, 300)], np.arange(300) % 20
    mapped = on_disk(z, tmp_path / "z.npy")
    for k in 1, 10, 299:
        assert (nearest_neighbours(mapped, k).indices == nearest_neighbours(z, k).indices).all()
    assert (nearest_neighbours(mapped[:50], 7, gallery=mapped).indices == nearest_neighbours(z[:50], 7, gallery=z).indices).all()
    assert retrieval_metrics(mapped, labels) == retrieval_metrics(z, labels)
    assert retrieval_metrics(3 * mapped, labels, normalize=True) == retrieval_metrics(z, labels)


def test_every_measure_of_a_file_is_that_of_the_array(tmp_path):
    z, labels = CORNERS[np.random.default_rng(4).integers(0, 24, 300)], np.arange(300) % 100  # few positives, far down
    mapped = on_disk(z, tmp_path / "z.npy")
    for name, values in query_scores(z, labels, (1, 3), measures=MEASURES).items():
        assert (query_scores(mapped, labels, (1, 3), measures=MEASURES)[name] == values).all(), name
    parts = dict(gallery=mapped[100:], gallery_labels=labels[100:], measures=MEASURES)
    assert retrieval_metrics(mapped[:100], labels[:100], **parts) == retrieval_metrics(z[:100], labels[:100], **(parts | {"gallery": z[100:]}))


@pytest.mark.parametrize("step", [1, 3, 64, 1_000])
def test_a_gallery_by_blocks_is_the_gallery(tmp_path, step):
    z = torch.tensor(CORNERS[np.random.default_rng(2).integers(0, 24, 200)], dtype=torch.float32)
    rows = retrieval._Mapped(on_disk(z.numpy(), tmp_path / "z.npy"), False)
    for own in None, np.arange(200):
        found, plain = retrieval._search_mapped(z, rows, 9, own, step), retrieval._search_torch(z, z, 9, own)
        assert (found[0] == plain[0]).all() and (found[1] == plain[1]).all()


def test_a_mapped_file_is_checked_and_names_its_row(tmp_path):
    z = sphere(300, 5)
    z[217] *= 2
    with pytest.raises(ValueError, match="row 217 of the embeddings has length 2"):
        nearest_neighbours(on_disk(z, tmp_path / "z.npy"), 3)
    with pytest.raises(ValueError, match="at least one row"):
        nearest_neighbours(on_disk(z[0], tmp_path / "flat.npy"), 3)


def test_streams_become_files(tmp_path):
    z, labels = sphere(1_000, 12), np.arange(1_000) * 3 - 7
    parts = ((torch.tensor(z[i : i + 64]), labels[i : i + 64]) for i in range(0, 1_000, 64))
    mapped, of_rows = store_embeddings(parts, tmp_path / "z.npy")
    assert isinstance(mapped, np.memmap) and mapped.dtype == np.float32 and (of_rows == labels).all()
    np.testing.assert_allclose(mapped, z, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), z, atol=1e-6)
    with pytest.raises(ValueError, match="no batches"):
        store_embeddings([], tmp_path / "none.npy")
    with pytest.raises(ValueError, match="3 dimensions after batches with 12"):
        store_embeddings([(z, labels), (sphere(5, 3), np.zeros(5, int))], tmp_path / "two.npy")
    with pytest.raises(ValueError, match=r"row 1003 .*length 2"):
        store_embeddings([(z, labels), (sphere(5, 12) * [[1], [1], [1], [2], [1]], np.zeros(5, int))], tmp_path / "long.npy")


def test_a_stream_that_breaks_off_leaves_the_old_file(tmp_path):
    def broken():
        yield sphere(10, 4), np.arange(10)
        raise RuntimeError("the model fell over")

    store_embeddings([(sphere(5, 4), np.arange(5))], tmp_path / "z.npy")
    with pytest.raises(RuntimeError, match="fell over"):
        store_embeddings(broken(), tmp_path / "z.npy")
    assert np.load(tmp_path / "z.npy").shape == (5, 4) and [path.name for path in tmp_path.iterdir()] == ["z.npy"]


def test_queries_of_many_dimensions_go_by_smaller_blocks(monkeypatch):
    asked = []
    search = retrieval._search
    monkeypatch.setattr(retrieval, "_search", lambda queries, *rest: asked.append(len(queries)) or search(queries, *rest))
    monkeypatch.setattr(retrieval, "_block", lambda rows: 2**10 // rows.shape[1])
    z, labels = sphere(300, 16), np.arange(300) % 30
    assert retrieval_metrics(z, labels) == retrieval_metrics(nearest_neighbours(z, 9), labels)
    assert max(asked) == 64


def test_a_mapped_gallery_is_never_held_whole(tmp_path):
    mapped = on_disk(sphere(200_000, 16), tmp_path / "z.npy")  # 12.8 MB
    tracemalloc.start()
    nearest_neighbours(np.array(mapped[:5]), 3, gallery=mapped[:100_000])
    nearest_neighbours(np.array(mapped[:5]), 3, gallery=mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12.8e6


# Approximate


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("source", ["array", "file"])
def test_an_index_says_what_it_missed(tmp_path, index, source):
    z = sphere(2_000, 16, seed=3)
    near = nearest_neighbours(z if source == "array" else on_disk(z, tmp_path / "z.npy"), 10, index=index)
    exact = nearest_neighbours(z, 10)
    share = np.mean([np.isin(right, said).mean() for right, said in zip(exact.indices, near.indices, strict=True)])
    assert near.index == index and near.recall == pytest.approx(share, abs=0.05) and near.recall > 0.6
    np.testing.assert_allclose(near.similarities, (z[:, None] * z[near.indices]).sum(axis=2), atol=1e-6)  # true, whatever the index holds
    found = retrieval_metrics(near, np.arange(2_000) % 200)
    assert ("index_recall" in found) == (index != "exact")
    if index != "exact":
        assert found["index_recall"] == near.recall == near.first(3).recall


def test_index_with_a_gallery_and_refusals():
    z = sphere(600, 8)
    near = nearest_neighbours(z[:100], 5, gallery=z, index="ivf")
    assert (near.indices[:, 0] == np.arange(100)).mean() > 0.95 and not near.leave_one_out
    with pytest.raises(ValueError, match="index='flat': choose one of"):
        nearest_neighbours(z, 5, index="flat")
    with pytest.raises(ValueError, match="need 256 rows"):
        nearest_neighbours(z[:100], 5, index="pq")


@pytest.mark.parametrize("index", ["ivf", "pq"])
def test_lists_that_the_index_cannot_fill_are_searched_exactly(index):
    z = sphere(400, 8)
    near = nearest_neighbours(z, 399, index=index)
    assert near.recall == 1.0 and (np.sort(near.indices, axis=1) == np.sort(nearest_neighbours(z, 399).indices, axis=1)).all()


@pytest.mark.parametrize("index", ["ivf", "hnsw", "pq"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_list_whatever_the_threads(index, threads):
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        z = sphere(3_000, 8)
        one, two = (nearest_neighbours(z, 5, index=index, seed=4) for _ in range(2))
        assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert (one.indices == two.indices).all() and one.recall == two.recall
