"""Multi-domain norms beside the rest of PyTorch: compiled, exported, in several processes, folded, gated."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from mdprop.model import Embedder, SmallResNet
from mdprop.norm import (
    DomainGate,
    MultiNorm,
    convert_multi_norm,
    fold_domain,
    interpolate_domains,
    route_samples,
    select_domain,
    split_domains,
    use_domain,
)

DOMAINS = ("clean", "single", "multi")


def differing(model: nn.Module, **options) -> nn.Module:
    "A converted model in which every domain has other numbers."
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
    convert_multi_norm(model, DOMAINS, **options)
    for module in model.modules():
        if isinstance(module, MultiNorm):
            for tensor in (*module.domain_norms.parameters(), *module.domain_norms.buffers()):
                if tensor.is_floating_point():
                    tensor.data += 0.3 * torch.rand(tensor.shape, generator=generator)
    return model


# Compiled


def alternating(model, step):
    return split_domains(model, clean=4, single=4) if step % 2 else split_domains(model, multi=4, clean=4)


def in_turn(model, step):
    return use_domain(model, DOMAINS[step % 3])


def by_sample(model, step):
    return route_samples(model, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]).roll(step))


def by_weight(model, step):
    return route_samples(model, torch.rand(8, 3, generator=torch.Generator().manual_seed(step)).softmax(1))


@pytest.mark.parametrize(
    ("route", "training", "share", "graphs"),
    [
        (alternating, True, None, 2),
        (alternating, True, "statistics", 2),
        (alternating, True, "affine", 2),
        (in_turn, True, None, 3),
        (by_sample, True, None, 1),
        (by_sample, False, None, 1),
        (by_sample, False, "statistics", 1),
        (by_weight, False, "affine", 1),
    ],
)
def test_compiling_takes_one_graph_a_route_and_not_one_a_step(route, training, share, graphs):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = differing(SmallResNet((1, 1, 1, 1), width=2), share=share).train(training)
    eager, counter = copy.deepcopy(model), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.rand(8, 3, 8, 8)
    for step in range(6):
        with route(model, step), route(eager, step):
            torch.testing.assert_close(compiled(x), eager(x))
    assert counter.frame_count == graphs


def test_compiled_gradients_are_those_of_eager():
    torch._dynamo.reset()
    model = differing(SmallResNet((1, 1, 1, 1), width=2))
    eager = copy.deepcopy(model)
    compiled, x = torch.compile(model, backend="aot_eager"), torch.rand(8, 3, 8, 8)
    for step in range(4):
        for m, run in ((model, compiled), (eager, eager)):
            with alternating(m, step):
                run(x).pow(2).sum().backward()
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3 * float(b.grad.abs().max()), msg=name)
    for a, b in zip(model.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)


# Formats and precisions


@pytest.mark.parametrize("training", [True, False])
def test_channels_last_and_autocast(training):
    model = differing(SmallResNet((1, 1, 1, 1), width=4)).train(training)
    x, index = torch.rand(6, 3, 16, 16), torch.tensor([2, 0, 1, 0, 2, 1])
    routes = [lambda m: split_domains(m, clean=2, single=2, multi=2), lambda m: route_samples(m, index)]
    routes += [] if training else [lambda m: route_samples(m, torch.full((6, 3), 1 / 3))]
    for route in routes:
        with torch.no_grad():
            plain, last, low = (copy.deepcopy(model) for _ in range(3))
            with route(plain):
                expected = plain(x)
            last = last.to(memory_format=torch.channels_last)
            with route(last):
                got = last(x.contiguous(memory_format=torch.channels_last))
            assert got.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
            with route(low), torch.autocast("cpu", torch.bfloat16):
                assert low.conv1(x).dtype == low.bn1(low.conv1(x)).dtype == torch.bfloat16
                rough = low(x)
            assert (rough.float() - expected).norm() < 0.05 * expected.norm()


def test_a_selected_domain_exports():
    model = differing(SmallResNet((1, 1, 1, 1), width=2)).eval()
    plain, x = select_domain(model, "multi"), torch.rand(2, 3, 8, 8)
    exported = torch.export.export(plain, (x,)).module()
    with use_domain(model, "multi"), torch.no_grad():
        torch.testing.assert_close(exported(x), model(x))


def test_a_selected_domain_becomes_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    plain, x = select_domain(differing(SmallResNet((1, 1, 1, 1), width=2)).eval(), "multi").eval(), torch.rand(2, 3, 8, 8)
    torch.onnx.export(plain, (x,), tmp_path / "plain.onnx", dynamo=True)
    program = onnx.load_model(tmp_path / "plain.onnx")
    (got,) = ReferenceEvaluator(program).run(None, {program.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), plain(x).detach(), rtol=1e-3, atol=1e-4)


# Several processes

PROCESSES = """
    import copy, os, sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from mdprop.norm import convert_multi_norm, route_samples, split_domains
    from mdprop.model import SmallResNet

    def work(rank, port):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.manual_seed(0)
        model = convert_multi_norm(SmallResNet((1, 1, 1, 1), width=2).double())
        alone = [copy.deepcopy(model) for _ in range(2)]
        both = DistributedDataParallel(model)
        xs = torch.rand(2, 6, 3, 8, 8, dtype=torch.float64)
        index = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
        for route in ("segments", "samples"):
            def routed(m, r):
                return route_samples(m, index[r]) if route == "samples" else split_domains(m, clean=2, single=2, multi=2)
            with routed(model, rank):
                both(xs[rank]).pow(2).mean().backward()
            for r, m in enumerate(alone):
                with routed(m, r):
                    m(xs[r]).pow(2).mean().backward()
        for p, a, b in zip(model.parameters(), alone[0].parameters(), alone[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, (a.grad + b.grad) / 2)
        dist.destroy_process_group()

    if __name__ == "__main__":
        import socket
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        torch.multiprocessing.spawn(work, (port,), nprocs=2)
"""


def test_two_processes_average_their_gradients(tmp_path):
    script = tmp_path / "processes.py"
    script.write_text(textwrap.dedent(PROCESSES), encoding="utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


# Folded


def test_folding_a_resnet():
    model = differing(SmallResNet((1, 1, 1, 1), width=4)).eval()
    x = torch.rand(4, 3, 16, 16)
    keys = list(model.state_dict())
    for domain in DOMAINS:
        folded = fold_domain(model, domain, x)
        assert folded.folded == 12 and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        with use_domain(model, domain), torch.no_grad():
            torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    assert list(model.state_dict()) == keys


def test_folding_an_embedder_needs_no_example():
    model = convert_multi_norm(Embedder("resnet10", dim=8, image_shape=(3, 16, 16), width=4)).train()
    folded, x = fold_domain(model, "multi"), torch.rand(4, 3, 16, 16)
    assert folded.folded == 12 and model.training and not folded.training
    with use_domain(model.eval(), "multi"), torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="give an example"):
        fold_domain(convert_multi_norm(SmallResNet(width=2)))
    with pytest.raises(ValueError, match="unknown domain"):
        fold_domain(model, "mutli")


class Odd(nn.Module):
    "Layers that look as if they could be folded, and must not be."

    def __init__(self):
        super().__init__()
        self.twice, self.once, self.read = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.up, self.line, self.tokens = nn.ConvTranspose2d(3, 3, 2), nn.Linear(3, 3), nn.Linear(3, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.norm1d, self.norm_tokens = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        x = self.norms[0](self.twice(self.twice(x)))  # its convolution runs twice
        x = self.norms[1](self.once(x))  # folds
        y = self.read(x)
        x = self.norms[2](y) + y  # the convolution's output is read by something else as well
        x = self.norms[3](self.up(x))  # folds
        z = self.norm1d(self.line(x.mean((2, 3))))  # folds
        return z + self.norm_tokens(self.tokens(z[:, None].expand(-1, 3, -1))).mean(1)  # normalises tokens, not features


def test_only_what_may_fold_folds():
    torch.manual_seed(0)
    model = convert_multi_norm(Odd())
    for norm in model.modules():
        if isinstance(norm, MultiNorm):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_(), norm.bias.data.normal_()
    x = torch.rand(4, 3, 5, 5)
    folded = fold_domain(model, "clean", x)
    assert folded.folded == 3
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.eval()(x))
    assert sorted(name for name, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)) == ["norm_tokens", "norms.0", "norms.2"]


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "mobilenetv3_small_100", "convnext_atto"])
def test_folding_timm_models(name):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    model = differing(timm.create_model(name, num_classes=0)).eval()
    x = torch.rand(2, 3, 64, 64)
    folded = fold_domain(model, "multi", x)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert folded.folded + left == sum(isinstance(m, nn.BatchNorm2d) and isinstance(m, MultiNorm) for m in model.modules())
    assert left == {"densenet121": 62}.get(name, 0)  # most norms of a DenseNet stand before a convolution; ConvNeXt has no batch norms


# Interpolated


def test_weights_of_interpolation_are_checked():
    model = convert_multi_norm(nn.BatchNorm1d(2))
    for weights in ({}, {"clean": 0.5}, {"clean": 1.5, "multi": -0.5}, {"clean": 0.5, "mutli": 0.5}):
        with pytest.raises(ValueError, match="name some of"):
            interpolate_domains(model, weights)


def test_an_interpolated_network_is_what_soft_routing_computes():
    model = differing(SmallResNet((1, 1, 1, 1), width=4)).eval()
    plain = interpolate_domains(model, {"clean": 0.7, "multi": 0.3})
    assert list(plain.state_dict()) == list(SmallResNet((1, 1, 1, 1), width=4).state_dict())
    x = torch.rand(4, 3, 16, 16)
    with route_samples(model, torch.tensor([[0.7, 0.0, 0.3]]).expand(4, 3)), torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-4)


# Gated


def images(domain: str, count: int = 24, seed: int = 0) -> torch.Tensor:
    "Images whose first layer shows where they come from."
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return {"clean": noise, "single": 0.3 * noise, "multi": noise.round()}[domain]


@pytest.fixture(scope="module")
def gate() -> DomainGate:
    torch.manual_seed(0)
    return DomainGate(differing(SmallResNet((1, 1, 1, 1), width=8)).eval()).eval().calibrate({domain: images(domain) for domain in DOMAINS})


@pytest.mark.parametrize("layer", [0, 3])
def test_a_gate_tells_the_domains_apart(layer, gate):
    gate = DomainGate(gate.model, layer).eval().calibrate({domain: images(domain).split(9) for domain in DOMAINS})
    for number, domain in enumerate(DOMAINS):
        weights = gate.weights(images(domain, seed=1))
        torch.testing.assert_close(weights.sum(1), torch.ones(24))
        assert (weights.argmax(1) == number).float().mean() > 0.9


def test_a_gate_is_soft_routing_by_its_weights_in_one_pass(gate):
    x = torch.cat([images(domain, 2, seed=2) for domain in DOMAINS])
    calls = []
    hook = gate.model.conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        out = gate(x)
    hook.remove()
    assert calls == [1]
    with torch.no_grad(), route_samples(gate.model, gate.weights(x)):
        torch.testing.assert_close(out, gate.model(x))
    hard = DomainGate(gate.model, hard=True)
    hard.load_state_dict(gate.state_dict())
    with torch.no_grad(), split_domains(gate.model, clean=2, single=2, multi=2):
        torch.testing.assert_close(hard.eval()(x), gate.model(x), rtol=1e-4, atol=1e-4)
    assert gate.model.bn1.router.route == (("clean", None),)


def test_norms_before_the_gates_layer_use_the_default_domain(gate):
    late = DomainGate(gate.model, layer=2, hard=True).eval().calibrate({domain: images(domain) for domain in DOMAINS})
    x = images("multi", 3, seed=3)
    assert late.weights(x).argmax(1).tolist() == [2, 2, 2]
    mixed, number = copy.deepcopy(gate.model), 0
    for norm in (mixed.bn1, mixed.layer1[0].bn1):  # the two that run before
        for name, tensor in norm.domain_norms["multi"].state_dict(keep_vars=True).items():
            tensor.data.copy_(norm.state_dict()[name])
        number += 1
    with torch.no_grad(), use_domain(mixed, "multi"):
        torch.testing.assert_close(late(x), mixed(x), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_a_soft_gate(gate):
    x = images("clean", 2).requires_grad_()
    (through,) = torch.autograd.grad(gate(x).square().sum(), x)
    with route_samples(gate.model, gate.weights(x).detach()):
        (past,) = torch.autograd.grad(gate.model(x).square().sum(), x)
    assert through.abs().sum() > 0 and not torch.allclose(through, past)


def test_gates_are_copied_saved_and_checked(gate):
    x = images("single", 3, seed=4)
    twin = copy.deepcopy(gate)
    assert twin.router is twin.model.bn1.router is not gate.router
    with torch.no_grad():
        torch.testing.assert_close(twin(x), gate(x))
        fresh = DomainGate(convert_multi_norm(SmallResNet((1, 1, 1, 1), width=8))).eval()
        with pytest.raises(ValueError, match=r"call gate\.calibrate"):
            fresh(x)
        fresh.load_state_dict(gate.state_dict())
        torch.testing.assert_close(fresh(x), gate(x))
    with pytest.raises(ValueError, match="some for every domain"):
        fresh.calibrate({"clean": x})
    with pytest.raises(ValueError, match="the model runs 12 norms"):
        DomainGate(gate.model, layer=12)(x)
    with pytest.raises(ValueError, match="the model runs 12 norms"):
        DomainGate(gate.model, layer=12).calibrate({domain: x for domain in DOMAINS})
    with pytest.raises(ValueError, match="evaluation mode"):
        copy.deepcopy(gate).train().weights(x)
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        copy.deepcopy(gate).train()(x)


def test_a_gate_on_a_layer_norm_network():
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    for name, size in (("vit_tiny_patch16_224", 32), ("convnext_atto", 64)):
        options = {"img_size": size} if "vit" in name else {}
        model = convert_multi_norm(timm.create_model(name, num_classes=0, **options)).eval()
        gate = DomainGate(model).eval().calibrate({domain: nn.functional.interpolate(images(domain, 8), size) for domain in DOMAINS})
        x = nn.functional.interpolate(images("multi", 4, 1), size)
        assert gate.weights(x).shape == (4, 3) and gate(x).shape == model(x).shape
        torch.testing.assert_close(gate(x), model(x), rtol=1e-3, atol=1e-3)  # all domains are still the same
