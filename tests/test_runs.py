"""Run folders: nothing half-written, nothing unpickled, everything back."""

import json

import numpy as np
import pytest
import torch

from mdprop.runs import RunError, Snapshot, load, load_tensors, replacing, save_snapshot, save_tensors, write_json


def snapshot(n=5, **changes):
    z = np.eye(n, 4, dtype=np.float32) + 1e-3
    fields = dict(z=z, labels=np.arange(n) % 2, class_names=["<b>ä</b>", "b"], keys=[f"k/{i}.png" for i in range(n)])
    return Snapshot(**fields | changes)


def test_tensors_round_trip_with_every_kind(tmp_path):
    tensors = {
        "float": torch.randn(3, 4), "slice": torch.randn(6, 6)[::2, 1:], "scalar": torch.tensor(3), "empty": torch.zeros(0, 2),
        "half": torch.randn(2).bfloat16(), "bool": torch.tensor([True]), "channels_last": torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last),
    }  # fmt: skip
    tensors["shared"] = tensors["float"]
    save_tensors(tmp_path / "a.safetensors", tensors, epoch=3, note="ä")
    back, facts = load_tensors(tmp_path / "a.safetensors")
    assert facts == {"epoch": 3, "note": "ä"}
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), replacing(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100, lambda b: b[:8] + b"!" + b[9:]])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "best.safetensors"
    save_tensors(path, {"a": torch.randn(100)}, epoch=1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"best\.safetensors is damaged"):
        load_tensors(path)


def test_snapshots_round_trip(tmp_path):
    write_json(tmp_path / "config.json", {"format": 1})
    thumbnails = np.random.default_rng(0).integers(0, 255, (5, 6, 6, 3), np.uint8)
    save_snapshot(tmp_path, snapshot(thumbnails=thumbnails))
    save_snapshot(tmp_path, snapshot(name="valid-002"))
    run = load(tmp_path)
    assert run.snapshots == ["test", "valid-002"]
    back = run.snapshot()
    assert (back.class_names, back.keys, back.run) == (["<b>ä</b>", "b"], [f"k/{i}.png" for i in range(5)], tmp_path.name)
    assert np.array_equal(back.z, snapshot().z) and np.array_equal(back.thumbnails, thumbnails)
    assert run.snapshot("valid-002").thumbnails is None


def test_a_snapshot_with_objects_is_not_unpickled(tmp_path):
    write_json(tmp_path / "config.json", {"format": 1})
    save_snapshot(tmp_path, snapshot())
    np.savez(tmp_path / "embeddings" / "test.npz", z=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path).snapshot()


@pytest.mark.parametrize("wrong", [dict(labels=np.arange(3)), dict(keys=["a"]), dict(z=np.zeros(5)), dict(thumbnails=np.zeros((2, 1, 1, 3)))])
def test_a_snapshot_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="one row for each image"):
        snapshot(**wrong)


def test_what_is_not_a_run_says_so(tmp_path):
    with pytest.raises(RunError, match="does not exist: give the folder"):
        load(tmp_path / "none")
    with pytest.raises(RunError, match=r"has no config\.json"):
        load(tmp_path)
    write_json(tmp_path / "config.json", {"format": 99, "versions": {"mdprop": "9.9"}})
    with pytest.raises(RunError, match="has format 99, this mdprop reads 1"):
        load(tmp_path)
