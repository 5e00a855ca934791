"""Several processes take the steps of one, measure what one would measure, and end together. Each test starts processes once and asks them many things."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from mdprop import parallel
from mdprop.attacks import FeatureAttack
from mdprop.data import glyphs
from mdprop.model import Embedder, SmallResNet
from mdprop.norm import convert_multi_norm, select_domain
from mdprop.parallel import ProcessFailed, any_process, check_norms, gather_rows, processes, rank, sharded, sum_gradients, synchronised_norms
from mdprop.recipes import Branch, Recipe, get_recipe
from mdprop.robustness import ers, evaluate, evaluate_shifts, masking_signs
from mdprop.runs import load, load_tensors
from mdprop.train import StopTraining, create_loss, create_miner, fit, training_step

PATIENCE = 600  # seconds until a process counts as hung: several of them start on a machine that may be busy
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
if sys.platform == "linux":
    ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"  # also where the machine's name leads nowhere


def start(task: str, folder: Path, world: int) -> list[subprocess.Popen]:
    "So many processes that do one of the tasks below."
    words = [sys.executable, __file__, task, str(folder)]
    return [
        subprocess.Popen([*words, str(r), str(world)], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in range(world)
    ]


def outcomes(running: list[subprocess.Popen]) -> list[tuple[int, str]]:
    "Exit codes and what was written to stderr; whoever hangs is killed."
    try:
        return [(process.returncode, told) for process in running for _, told in [process.communicate(timeout=PATIENCE)]]
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_all(task: str, folder: Path, world: int, tries: int = 3) -> None:
    problems = [f"process {r}: exit code {code}\n{told}" for r, (code, told) in enumerate(outcomes(start(task, folder, world))) if code]
    if tries > 1 and any("connectFullMesh failed" in problem for problem in problems):  # gloo now and then loses a connection while it starts
        (folder / f"store-{task}").unlink(missing_ok=True)
        return run_all(task, folder, world, tries - 1)
    assert not problems, "\n".join(problems)


# The same steps


WEIGHTED = Recipe(
    "weighted",
    (Branch(), Branch("single", FeatureAttack(1, 8 / 255, 2, norm="l2"), (0, 0.4), 0.5),
     Branch("multi", FeatureAttack(3, 8 / 255, 2, policy="other_class", restarts=2), (0.4, 1), 2.0)),
    joint=False,
)  # fmt: skip
DENSE = Recipe("dense", (Branch(), Branch("multi", FeatureAttack(3, 8 / 255, 2, policy="dense", adaptive=True, stop=0.01))))
CASES = {  # recipe, loss, miner, what norms share
    "plain": ("plain", "multi_similarity", "multi_similarity", None),
    "mdprop": ("mdprop", "multi_similarity", None, None),
    "shared statistics": ("mdprop", "multi_similarity", "multi_similarity", "statistics"),
    "shared affine": ("mdprop", "triplet_margin", "triplet_margin", "affine"),
    "proxies": ("mdprop", "proxy_anchor", None, None),
    "paper": ("mdprop_paper", "multi_similarity", "multi_similarity", None),
    "weighted": (WEIGHTED, "multi_similarity", None, None),
    "dense": (DENSE, "multi_similarity", None, None),
    "est": ("est", "triplet_margin", None, None),
    "act": ("act", "triplet_margin", None, None),
    "hm": ("hm", "triplet_margin", None, None),
    "checkpointed": ("plain", "multi_similarity", None, None),
}
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4])  # 11: no multiple of 2 or 3


class Checkpointed(nn.Module):
    "A backbone that computes its activations once more in the backward pass."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.net, x, use_reentrant=False)  # type: ignore[no-any-return]


def after_steps(case: str, dtype: torch.dtype = torch.float64, steps: int = 3) -> dict[str, torch.Tensor]:
    "Everything that a few steps have changed."
    recipe, loss, miner, share = CASES[case]
    torch.manual_seed(0)
    recipe, backbone = get_recipe(recipe), SmallResNet((1, 1, 1, 1), 4, 1)
    model = Embedder(Checkpointed(backbone) if case == "checkpointed" else backbone, 8, (1, 16, 16)).to(dtype)
    if len(recipe.domains) > 1:
        convert_multi_norm(model, recipe.domains, recipe.statistics, share)
    if recipe.norms == "frozen":
        for module in model.modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
    loss, miner = create_loss(loss, 5, 8).to(dtype), create_miner(miner)
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=2e-3)
    generator, images = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.rand(len(LABELS), 1, 16, 16, generator=images, dtype=dtype)
        value = training_step(model, recipe, loss, miner, x, LABELS, generator)
        optimizer.zero_grad()
        with synchronised_norms():
            value.backward()
        sum_gradients(model.parameters())
        sum_gradients(loss.parameters(), 1 / processes())
        optimizer.step()
    memory = {f"recipe.{i}": b.attack.state()["z"] for i, b in enumerate(recipe.branches) if isinstance(b.attack, FeatureAttack) and b.attack.memory}
    return {**{f"model.{k}": v for k, v in model.state_dict().items()}, **{f"loss.{k}": v for k, v in loss.state_dict().items()}, **memory}


def steps_task(folder: Path) -> None:
    for case in CASES:
        with sharded():
            found = after_steps(case)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{case}-{distributed.get_rank()}.safetensors")
    with sharded():
        found = after_steps("mdprop", torch.float32)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"float32-{distributed.get_rank()}.safetensors")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return {case: after_steps(case) for case in CASES} | {"float32": after_steps("mdprop", torch.float32)}


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_take_the_steps_of_one(world, tmp_path, alone):
    run_all("steps", tmp_path, world)
    for case, expected in alone.items():
        each = [load_file(tmp_path / f"{case}-{r}.safetensors") for r in range(world)]
        for name, value in expected.items():
            exact = case != "float32"
            torch.testing.assert_close(each[0][name], value, rtol=0, atol=1e-10 if exact else 1e-5, msg=lambda text, of=f"{case}, {name}": f"{of}: {text}")
            assert all(other[name].equal(each[0][name]) for other in each[1:]), f"{case}: {name} differs between processes"


# Whole trainings


class Exact(nn.Module):
    "A backbone in double precision, so that nothing but a mistake can make two runs differ."

    def __init__(self):
        super().__init__()
        self.net, self.flat = SmallResNet((1, 1, 1, 1), 2, 1).double(), nn.Linear(16, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.net(x.double()).mean((2, 3)))


def exact() -> Exact:
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # a backbone of the user's own, with other weights in each process: those of the first count
    return Exact()


def data():
    return glyphs(size=16).split_classes()[0].keep_classes(range(12)).subset(range(0, 180, 2))


def train(out: Path, watch=None):
    return fit(data(), "mdprop", out, backbone=exact(), dim=None, epochs=3, batch_size=10, per_class=2, lr=1e-3, progress=False, watch=watch,
               valid_domains=True, save_minutes=1e9)  # fmt: skip


def stop_after(epoch: int):
    def watch(what, facts):
        assert rank() == 0, "only the first process may be watched"
        if what == "epoch" and facts["epoch"] == epoch:
            raise StopTraining("long enough")

    return watch


def measures(run) -> dict[str, float]:
    "What the measurements find, apart from training."
    test = glyphs(size=16).split_classes()[1].keep_classes(range(4)).subset(range(0, 80, 2))
    model = Single(run.model("last", backbone=exact()))
    found = evaluate(model, test, steps=2)
    robust = ers(model, test, ("CA+", "QA-", "ES:D", "GTT"), steps=2, restarts=2, batch_size=40, size=7, progress=False)
    shifted = evaluate_shifts(model, test, ("noise", "rotation"), (3,), size=7, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # after three epochs anything may look masked
        searched = masking_signs(model, test, queries=10, steps=2, size=7, progress=False).set_index("search")["objective"]
    return found | robust.table.set_index("attack")["raw"].to_dict() | dict(enumerate(shifted["recall_at_1"])) | searched.to_dict()


class Single(nn.Module):
    "A model in double precision whose embeddings are those of any other."

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).float()


def fit_task(folder: Path) -> None:
    resumed, world = folder / "resumed", distributed.get_world_size()
    os.environ["RANK"] = str(distributed.get_rank())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(resumed, stop_after(2))  # the parent has trained one epoch
        run = train(folder / f"whole-{world}")
    assert sorted(path.name for path in folder.rglob("*.part")) == []
    with sharded():
        found = measures(run)
        assert any_process(rank() == 0)
    (folder / f"measures-{world}-{distributed.get_rank()}.json").write_text(json.dumps(found))


def test_trainings_resume_on_any_number_of_processes_and_measure_the_same(tmp_path):
    one = train(tmp_path / "one")
    train(tmp_path / "resumed", stop_after(1))
    run_all("fit", tmp_path, 3)
    resumed, whole = train(tmp_path / "resumed"), load(tmp_path / "whole-3")
    expected, moments = load_tensors(one.path / "last.safetensors")[0], {"optimizer"}
    assert {name.split(".")[0] for name in expected} >= {"model", *moments}
    for run in (resumed, whole):
        found = load_tensors(run.path / "last.safetensors")[0]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8, msg=lambda text, of=name: f"{of}: {text}")
        exactly = [name for name in one.metrics if name not in ("seconds", "images_per_s", "data_share")]
        pd.testing.assert_frame_equal(run.metrics[exactly], one.metrics[exactly], rtol=1e-5)
        assert run.snapshots == one.snapshots
    assert whole.config["processes"] == 3 and one.config["processes"] == 1
    assert [note["text"] for note in resumed.notes if note["what"] == "resumed"] == [
        f"from here on with {what}" for what in ("processes 3 instead of 1 at the start", "the settings of its start")
    ]
    wanted = measures(one)
    for r in range(3):
        assert json.loads((tmp_path / f"measures-3-{r}.json").read_text()) == pytest.approx({str(k): v for k, v in wanted.items()}, abs=1e-5, nan_ok=True)


# When one fails


class Fatal(nn.Module):
    "A loss that fails in the fourth step of one process."

    def __init__(self, how: str, mark: Path):
        super().__init__()
        self.how, self._mark, self._calls = how, mark, 0
        self.inner = create_loss("multi_similarity")

    def forward(self, z, labels, pairs=None):
        self._calls += 1
        if self._calls == 4 and rank() == 1:
            self._mark.write_text(str(time.time()))
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no room for the pairs")
        return self.inner(z, labels, pairs)


def failing(folder: Path, how: str) -> None:
    mark = folder / f"{how}-failed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(data(), "plain", folder / how, width=2, dim=8, epochs=2, batch_size=10, per_class=2, loss=Fatal(how, mark), progress=False)
    except BaseException as error:
        took = time.time() - float(mark.read_text())
        print(f"{type(error).__name__} after {took:.0f} s: {error}", file=sys.stderr)
        assert took < 60, "the others have waited"
        sys.exit(3)


def raise_task(folder: Path) -> None:
    failing(folder, "raise")


def kill_task(folder: Path) -> None:
    failing(folder, "kill")


def test_one_error_ends_all_processes_with_its_message(tmp_path):
    raised = outcomes(start("raise", tmp_path, 3))
    assert [code for code, _ in raised] == [3, 3, 3], raised
    assert "MemoryError" in raised[1][1] and "no room for the pairs" in raised[1][1]
    for other in (0, 2):
        assert "ProcessFailed" in raised[other][1] and "process 1 of 3 failed: MemoryError: no room for the pairs" in raised[other][1]
    killed = outcomes(start("kill", tmp_path, 2))
    assert [code for code, _ in killed] == [3, -signal.SIGKILL], killed
    assert "another process has ended without a word" in killed[0][1]


# What cannot be shared


class OwnNorm(nn.Module):
    "A norm with statistics of its own."

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))


def norms_task(folder: Path) -> None:
    with sharded():
        check_norms(nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True), OwnNorm().eval()))
        shared = convert_multi_norm(nn.Sequential(nn.BatchNorm2d(2)), share="statistics")
        check_norms(shared)
        check_norms(select_domain(shared, "multi"))
        with pytest.raises(ValueError, match=r"^0 \(OwnNorm\) takes batch statistics in its own way"):
            check_norms(nn.Sequential(OwnNorm()))
        with pytest.raises(ValueError, match="keeps no running statistics"):
            check_norms(nn.BatchNorm1d(2, track_running_stats=False))
        with pytest.raises(ValueError, match="cannot be shared by 2 processes"):
            training_step(nn.Flatten(), get_recipe("plain"), create_loss("multi_similarity"), None, torch.rand(1, 1, 2, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="were given different data or settings"), warnings.catch_warnings(), sharded():
        warnings.simplefilter("ignore")
        fit(data(), "plain", folder / "other", epochs=1 + distributed.get_rank(), progress=False)


def test_what_several_processes_cannot_do_is_refused(tmp_path):
    run_all("norms", tmp_path, 2)
    check_norms(nn.Sequential(OwnNorm()))  # in one process everything goes
    with sharded():
        assert gather_rows(LABELS, 11) is LABELS


# Through the launcher


def test_the_command_works_through_accelerate_launch(tmp_path):
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m mdprop.cli"  # --cpu would start one process
    options = "train --size 16 --recipe plain --epochs 1 --width 2 --dim 8 --batch-size 10 --per-class 2 --quiet --out run"
    words = f"{launcher} {options}".split()
    run = subprocess.run([sys.executable, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Run(run: recipe 'plain'") == 1, run.stdout
    assert load(tmp_path / "run").config["processes"] == 2


NOTEBOOK = """
import torch
from accelerate import notebook_launcher
from mdprop.parallel import any_process, gather_rows, processes, rank, sharded

def cell(path):
    with sharded():
        total = gather_rows(torch.ones(1) + rank(), processes())
        open(f"{path}/{rank()}", "w").write(f"{processes()} {total.tolist()}")

with sharded():
    assert processes() == 1  # before the launch, as in a notebook that has trained alone
notebook_launcher(cell, (".",), num_processes=2)
"""


def test_a_notebook_starts_processes_by_its_launcher(tmp_path):
    run = subprocess.run([sys.executable, "-c", NOTEBOOK], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr
    assert [(tmp_path / str(r)).read_text() for r in range(2)] == ["2 [1.0, 2.0]"] * 2


@pytest.fixture
def launched(monkeypatch):
    "As accelerate's launcher starts a process."
    for name in (*parallel._STARTED, "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    parallel._warn_of_one_process.cache_clear()
    return monkeypatch


def test_one_process_instead_of_several_is_told_once(launched):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sharded():  # one process was asked for
            pass
        launched.setenv("MASTER_PORT", "29500")  # several were
        with pytest.raises(UserWarning, match=r"has started one process, which does the work of all.*torchrun --nproc_per_node 2"), sharded():
            pass
    parallel._warn_of_one_process.cache_clear()
    with pytest.warns(UserWarning, match="one process") as told:
        for _ in range(3):
            with sharded():
                pass
    assert len(told) == 1


@pytest.mark.parametrize("name", parallel._STARTED)
def test_every_launcher_is_asked_how_many_it_has_started(launched, name):
    launched.setenv(name, "3")
    assert parallel._started() == 3


if __name__ == "__main__":
    task, where, number, world = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=(Path(where) / f"store-{task}").as_uri(), rank=int(number), world_size=int(world))
    try:
        globals()[f"{task}_task"](Path(where))
    except ProcessFailed as failed:
        sys.exit(f"ProcessFailed: {failed}")
    finally:
        if distributed.is_initialized():  # a process that ends while gloo's threads run may abort
            distributed.destroy_process_group()
