"""Routing row by row, shared parts, every kind of norm: beside sorting, beside separate norms, beside the plain model."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from mdprop.model import SmallResNet
from mdprop.norm import (
    MultiNorm,
    checkpoint_context,
    convert_multi_norm,
    domains_of,
    interpolate_domains,
    route_samples,
    select_domain,
    split_domains,
    use_domain,
)

DOMAINS = ("clean", "single", "multi")
def timm_layers():
    return pytest.importorskip("timm.layers", reason="the extra timm is not installed")


def torchvision_frozen():
    return pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(4)


NORMS = {  # name: (norm, shape of one sample)
    "batch1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch1d_length": (lambda: nn.BatchNorm1d(4), (4, 5)),
    "batch2d": (lambda: nn.BatchNorm2d(4), (4, 3, 5)),
    "batch3d": (lambda: nn.BatchNorm3d(4), (4, 2, 3, 2)),
    "batch_no_affine": (lambda: nn.BatchNorm2d(4, affine=False), (4, 3, 5)),
    "batch_no_statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 5)),
    "sync": (lambda: nn.SyncBatchNorm(4), (4, 3, 5)),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 5)),
    "instance_statistics": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 5)),
    "layer": (lambda: nn.LayerNorm(4), (5, 4)),
    "layer2": (lambda: nn.LayerNorm((3, 4)), (3, 4)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 5)),
    "rms": (lambda: nn.RMSNorm(4), (5, 4)),
    "timm_batch_act": (lambda: timm_layers().BatchNormAct2d(4), (4, 3, 5)),
    "timm_batch_prelu": (lambda: timm_layers().BatchNormAct2d(4, act_layer=nn.PReLU), (4, 3, 5)),
    "timm_frozen_act": (lambda: timm_layers().FrozenBatchNormAct2d(4), (4, 3, 5)),
    "torchvision_frozen": (torchvision_frozen, (4, 3, 5)),
    "timm_group1": (lambda: timm_layers().GroupNorm1(4), (4, 3, 5)),
    "timm_group_act": (lambda: timm_layers().GroupNormAct(4, 2), (4, 3, 5)),
    "timm_layer2d": (lambda: timm_layers().LayerNorm2d(4), (4, 3, 5)),
    "timm_layer_fp32": (lambda: timm_layers().LayerNormFp32(4), (5, 4)),
    "timm_layer_act2d": (lambda: timm_layers().LayerNormAct2d(4), (4, 3, 5)),
    "timm_rms": (lambda: timm_layers().RmsNorm(4), (5, 4)),
    "timm_rms2d": (lambda: timm_layers().RmsNorm2d(4), (4, 3, 5)),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def different(norm: nn.Module, seed: int) -> nn.Module:
    "The norm with other numbers in its statistics and affine, in float64."
    generator = torch.Generator().manual_seed(seed)
    norm.double()
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    return norm


def apart_and_together(name: str, share: str | None = None) -> tuple[list[nn.Module], nn.Module]:
    "Three separate norms with different numbers, and one multi-domain norm with the same."
    make, _ = NORMS[name]
    apart = [different(make(), seed) for seed in range(3)]
    if "act" in apart[0]._modules:  # the built-in activation is one for all domains
        for other in apart[1:]:
            other.act = apart[0].act
    together = convert_multi_norm(copy.deepcopy(apart[0]), DOMAINS, share=share)
    for domain, norm in zip(DOMAINS[1:], apart[1:], strict=True):
        for key, value in together.domain_norms[domain].state_dict(keep_vars=True).items():
            value.data.copy_(norm.state_dict()[key])
    return apart, together


def rows(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *NORMS[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))



# Every kind of norm


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_segments_and_samples_are_separate_norms(name, training):
    index = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2, 1])
    apart, by_sample = apart_and_together(name)
    by_segment, separate = copy.deepcopy(by_sample), copy.deepcopy(apart)
    for norm in (*separate, by_sample, by_segment):
        norm.train(training)
    order = index.argsort(stable=True)
    xs = [rows(name, len(index)).requires_grad_() for _ in range(3)]
    with route_samples(by_sample, index):
        ours = by_sample(xs[0])
    with split_domains(by_segment, clean=3, single=3, multi=3):
        segments = by_segment(xs[1][order])
    expected = torch.cat([norm(part) for norm, part in zip(separate, xs[2][order].split(3), strict=True)])
    torch.testing.assert_close(ours[order], expected)
    torch.testing.assert_close(segments, expected)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    for out, w in ((ours[order], weight), (segments, weight), (expected, weight)):
        (out * w).sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[2].grad)
    torch.testing.assert_close(xs[1].grad, xs[2].grad)
    for together in (by_sample, by_segment):
        for domain, norm in zip(DOMAINS, separate, strict=True):
            mine = together._domain_tensors(domain)
            for key, tensor in norm.state_dict(keep_vars=True).items():
                if key in mine:
                    torch.testing.assert_close(mine[key], tensor, check_dtype=False)
                    if tensor.grad is not None:
                        torch.testing.assert_close(mine[key].grad, tensor.grad)


@every_norm
def test_a_domain_comes_back_as_the_plain_class(name):
    apart, together = apart_and_together(name)
    for domain, norm in zip(DOMAINS, apart, strict=True):
        plain = select_domain(together, domain)
        assert type(plain) is type(norm) and list(plain.state_dict()) == list(norm.state_dict())
        copy.deepcopy(norm).load_state_dict(plain.state_dict())
        x = rows(name, 6)
        torch.testing.assert_close(plain.eval()(x), norm.eval()(x))
        torch.testing.assert_close(plain.train()(x), norm.train()(x))


@every_norm
def test_mixtures_are_interpolated_models(name):
    _, together = apart_and_together(name)
    together.eval()
    if name == "batch_no_statistics":
        with pytest.raises(ValueError, match="fixed statistics"), route_samples(together, torch.full((6, 3), 1 / 3)):
            together(rows(name, 6))
        return
    share = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    x, weights = rows(name, 6).requires_grad_(), share.expand(6, 3).clone().requires_grad_()
    with route_samples(together, weights):
        out = together(x)
    torch.testing.assert_close(out, interpolate_domains(together, dict(zip(DOMAINS, share[0].tolist(), strict=True))).eval()(x))
    gradients = torch.autograd.grad(out.square().sum(), (x, weights))
    assert all(g.abs().sum() > 0 for g in gradients)
    index = torch.tensor([0, 2, 1, 1, 0, 2])
    with route_samples(together, nn.functional.one_hot(index, 3).double()):
        one_hot = together(x)
    with route_samples(together, [DOMAINS[i] for i in index]):
        torch.testing.assert_close(one_hot, together(x))
    for domain in DOMAINS:
        one, same = interpolate_domains(together, {domain: 1.0}), select_domain(together, domain)
        for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["batch2d", "layer", "timm_batch_act"])
def test_gradients_of_mixtures_by_finite_differences(name):
    _, together = apart_and_together(name)
    together.eval()

    def run(x, logits):
        with route_samples(together, logits.softmax(1)):
            return together(x)

    assert torch.autograd.gradcheck(run, (rows(name, 3).requires_grad_(), rows("batch1d", 3)[:, :3].clone().requires_grad_()))


# Random rows


@settings(max_examples=40)
@given(index=st.lists(st.integers(0, 2), min_size=1, max_size=12), training=st.booleans(), channels_last=st.booleans())
def test_any_order_is_sorting(index, training, channels_last):
    index = torch.tensor(index)
    sizes = index.bincount(minlength=3).tolist()
    _, sorted_norm = apart_and_together("batch2d")
    norm = copy.deepcopy(sorted_norm).train(training)
    sorted_norm.train(training)
    x = rows("batch2d", len(index))
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    order = index.argsort(stable=True)
    with route_samples(norm, index):
        out = norm(x)
    with split_domains(sorted_norm, **dict(zip(DOMAINS, sizes, strict=True))):
        expected = sorted_norm(x[order])
    torch.testing.assert_close(out[order], expected)
    (ours,) = torch.autograd.grad(out.pow(3).sum(), x)
    (theirs,) = torch.autograd.grad(expected.pow(3).sum(), x)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(norm.state_dict().values(), sorted_norm.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    if channels_last:
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_no_rows_at_all():
    norm = convert_multi_norm(nn.BatchNorm2d(4)).eval()
    x = torch.rand(0, 4, 3, 3)
    with split_domains(norm, clean=0, multi=0):
        assert norm(x).shape == x.shape
    with route_samples(norm, torch.empty(0, dtype=torch.int64)):
        assert norm(x).shape == x.shape
    with route_samples(norm, torch.empty(0, 3)):
        assert norm(x).shape == x.shape
    plain = select_domain(norm, "clean").train()
    with split_domains(norm.train(), clean=0):
        torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_mean, plain.running_mean, equal_nan=True)


def test_one_sample_of_a_domain_gets_batch_norms_own_error():
    norm = convert_multi_norm(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="more than 1 value per channel"), route_samples(norm, [*DOMAINS, "clean", "multi"]):
        norm(torch.rand(5, 2))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (torch.tensor([0, 3]), "whole numbers from 0 to 2"),
        (torch.tensor([-1, 0]), "whole numbers from 0 to 2"),
        (torch.tensor([True, False]), "whole numbers"),
        (torch.tensor([[0, 1]]), r"\(n,\) whole numbers"),
        (["clean", "mutli"], "unknown domain 'mutli'"),
        (torch.rand(2, 2), r"\(n, 3\) numbers"),
        (torch.tensor([[0.5, 0.2, 0.2]]), "sum to 1"),
        (torch.tensor([[1.5, -0.5, 0.0]]), "not negative"),
        (torch.tensor([[float("nan")] * 3]), "sum to 1"),
    ],
)
def test_an_impossible_index_is_refused(index, said):
    norm = convert_multi_norm(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=said), route_samples(norm, index):
        pass
    assert norm.router.route == (("clean", None),)


def test_an_index_of_another_size_than_the_batch_is_refused():
    norm = convert_multi_norm(nn.BatchNorm1d(2)).eval()
    for index in (torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)):
        with pytest.raises(ValueError, match="routes 2 rows, but the batch has 5"), route_samples(norm, index):
            norm(torch.rand(5, 2))


def test_weights_are_refused_in_training():
    norm = convert_multi_norm(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"), route_samples(norm, torch.full((2, 3), 1 / 3)):
        norm(torch.rand(2, 2))


# One buffer for all segments: the same as separate parts, wherever it is used


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, on its way to forward derivatives
def test_second_and_forward_derivatives_of_segments():
    norm = different(nn.BatchNorm2d(3), 0)
    norm = convert_multi_norm(norm)

    def run(x):
        with split_domains(norm, clean=2, multi=3):
            return norm(x)

    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, x) and torch.autograd.gradgradcheck(run, x)
    with torch.autograd.forward_ad.dual_level():
        direction = torch.randn_like(x)
        out = torch.autograd.forward_ad.unpack_dual(run(torch.autograd.forward_ad.make_dual(x.detach(), direction)))
    torch.testing.assert_close(out.tangent, torch.autograd.functional.jvp(run, x.detach(), direction)[1])


@pytest.mark.parametrize("shape", [(7, 3, 4, 5), (7, 3, 6), (7, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "expanded"])
def test_segments_of_any_layout(shape, layout):
    norm = convert_multi_norm(different(nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3), 0))
    apart = [copy.deepcopy(select_domain(norm, domain)).train() for domain in DOMAINS]
    base = torch.randn(*shape, dtype=torch.float64)
    x = {
        "contiguous": lambda: base,
        "channels_last": lambda: base.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else base,
        "permuted": lambda: base.transpose(1, -1).contiguous().transpose(1, -1),
        "sliced": lambda: torch.randn(14, *shape[1:], dtype=torch.float64)[::2],
        "expanded": lambda: (base if len(shape) == 2 else base[..., :1].expand(shape)),
    }[layout]()
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    with split_domains(norm, clean=3, single=2, multi=2):
        out = norm(ours)
    expected = torch.cat([bn(part) for bn, part in zip(apart, theirs.split([3, 2, 2]), strict=True)])
    torch.testing.assert_close(out, expected)
    out.pow(3).sum().backward(), expected.pow(3).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for domain, bn in zip(DOMAINS, apart, strict=True):
        torch.testing.assert_close(norm._domain_tensors(domain)["weight"].grad, bn.weight.grad)


def test_hooks_of_a_domains_norm_are_called():
    norm, seen = convert_multi_norm(nn.BatchNorm1d(2)), []
    norm.domain_norms["multi"].register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    with split_domains(norm, clean=3, multi=2):
        norm(torch.rand(5, 2))
    assert seen == [2]


def test_the_same_domain_twice_and_two_passes_before_backward():
    norm = convert_multi_norm(nn.BatchNorm1d(2, dtype=torch.float64))
    other = copy.deepcopy(norm)
    x = torch.randn(6, 2, dtype=torch.float64)
    losses = []
    for _ in range(2):
        with split_domains(norm, clean=3, multi=3):
            losses.append(norm(x).pow(3).sum())
        with use_domain(other, "clean"):
            losses.append(other(x[:3]).pow(3).sum())
        with use_domain(other, "multi"):
            losses.append(other(x[3:]).pow(3).sum())
    sum(losses).backward()
    for (name, a), b in zip(norm.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    for a, b in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


# Sharing


@pytest.mark.parametrize("route", ["segments", "samples"])
def test_shared_statistics_are_those_of_all_rows(route):
    norm = different(nn.BatchNorm2d(4), 0)
    shared = convert_multi_norm(copy.deepcopy(norm), share="statistics")
    assert list(shared.state_dict()) == [*norm.state_dict(), *(f"domain_norms.{d}.{k}" for d in DOMAINS[1:] for k in ("weight", "bias"))]
    different(shared.domain_norms, 1)
    index = torch.tensor([0, 0, 0, 1, 1, 2]) if route == "segments" else torch.tensor([2, 0, 1, 0, 1, 0])
    x = rows("batch2d", 6)
    affine = [shared._domain_tensors(d) for d in DOMAINS]
    for training in (True, False):
        norm.train(training), shared.train(training)
        with route_samples(shared, index) if route == "samples" else split_domains(shared, clean=3, single=2, multi=1):
            out = shared(x)
        whole = (norm(x) - norm.bias[:, None, None]) / norm.weight[:, None, None]
        expected = torch.stack([row * affine[d]["weight"][:, None, None] + affine[d]["bias"][:, None, None] for row, d in zip(whole, index, strict=True)])
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(shared.running_var, norm.running_var)
        assert shared.num_batches_tracked == norm.num_batches_tracked
    out.sum().backward()
    assert shared.domain_norms["multi"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("route", ["segments", "samples"])
def test_a_shared_affine_is_one_weight_and_one_bias(route):
    shared = convert_multi_norm(different(nn.BatchNorm2d(4), 0), share="affine")
    assert [name for name, _ in shared.named_parameters()] == ["weight", "bias"]
    assert not any(key.endswith(("weight", "bias")) for key in shared.state_dict() if "domain_norms" in key)
    different(shared.domain_norms, 1)
    apart = [nn.BatchNorm2d(4, dtype=torch.float64) for _ in DOMAINS]
    for norm, domain in zip(apart, DOMAINS, strict=True):
        norm.load_state_dict(select_domain(shared, domain).state_dict())
    index = torch.tensor([0, 0, 0, 1, 1, 2, 2]) if route == "segments" else torch.tensor([2, 0, 1, 0, 1, 0, 2])
    x, order = rows("batch2d", 7), index.argsort(stable=True)
    for training in (True, False):
        for norm in (shared, *apart):
            norm.train(training)
        with route_samples(shared, index) if route == "samples" else split_domains(shared, clean=3, single=2, multi=2):
            out = shared(x)
        expected = torch.cat([norm(part) for norm, part in zip(apart, x[order].split([3, 2, 2]), strict=True)])
        torch.testing.assert_close(out[order], expected)
        for norm, domain in zip(apart, DOMAINS, strict=True):
            for key, value in norm.state_dict().items():
                torch.testing.assert_close(shared._domain_tensors(domain)[key], value)
    out.square().sum().backward(), expected.square().sum().backward()
    torch.testing.assert_close(shared.weight.grad, sum(norm.weight.grad for norm in apart))


@every_norm
@pytest.mark.parametrize("share", ["statistics", "affine"])
def test_sharing_with_every_norm(name, share):
    make, _ = NORMS[name]
    plain = different(make(), 0)
    batch = any(word in name for word in ("batch", "sync", "frozen", "instance_statistics"))
    nothing = (share == "affine" and not batch) or (share == "statistics" and name == "batch_no_affine")
    if nothing:
        with pytest.raises(ValueError, match="nothing to convert"):
            convert_multi_norm(plain, share=share)
        return
    model = convert_multi_norm(copy.deepcopy(plain), share=share)
    for training in (True, False):
        model.train(training), plain.train(training)
        x = rows(name, 4)
        for domain in DOMAINS:
            with use_domain(model, domain):
                torch.testing.assert_close(copy.deepcopy(model)(x), copy.deepcopy(plain)(x))
                if share == "affine" or not training:
                    torch.testing.assert_close(copy.deepcopy(model).to(torch.float64)(x), copy.deepcopy(plain)(x))
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert list(select_domain(twin, "multi").state_dict()) == list(plain.state_dict())


def test_sharing_nothing_that_is_left_is_an_error():
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        convert_multi_norm(nn.Sequential(nn.LayerNorm(2)), share="affine")
    with pytest.raises(ValueError, match="choose None, 'statistics' or 'affine'"):
        convert_multi_norm(nn.BatchNorm1d(2), share="both")
    mixed = convert_multi_norm(nn.Sequential(nn.LayerNorm(2), nn.BatchNorm1d(2)), share="affine")
    assert [isinstance(m, MultiNorm) for m in mixed] == [False, True]


def test_reset_statistics():
    norm = different(nn.BatchNorm2d(4), 0)
    norm.num_batches_tracked += 7
    fresh = convert_multi_norm(norm, statistics="reset").domain_norms["multi"]
    assert fresh.running_mean.tolist() == [0] * 4 and fresh.running_var.tolist() == [1] * 4 and fresh.num_batches_tracked == 0
    torch.testing.assert_close(fresh.weight, norm.weight)


# What is a norm


def test_what_has_nothing_to_separate_is_left_alone():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.InstanceNorm1d(4), nn.LocalResponseNorm(2), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="nothing to convert"):
        convert_multi_norm(model)
    model.append(nn.LayerNorm(4))
    convert_multi_norm(model)
    assert [isinstance(m, MultiNorm) for m in model] == [False] * 4 + [True]


def test_synchronising_after_conversion_is_noticed():
    model = convert_multi_norm(nn.Sequential(nn.BatchNorm1d(2)))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(ValueError, match=r"convert_sync_batchnorm\(model\) first"), use_domain(model, "multi"):
        pass
    right = convert_multi_norm(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(2))))
    assert domains_of(right) == DOMAINS and isinstance(right[0], nn.SyncBatchNorm)


def test_the_transformers_fast_path_does_not_pass_by():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
    plain = nn.TransformerEncoder(layer, 2).eval()
    model = convert_multi_norm(copy.deepcopy(plain))
    for norm in model.modules():
        if isinstance(norm, MultiNorm):
            norm.domain_norms["multi"].weight.data.mul_(1.5)
    x, padding = torch.rand(3, 5, 8), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    with torch.no_grad():
        for arguments in ({}, {"src_key_padding_mask": padding}):
            same = model(x, **arguments)[~padding]
            torch.testing.assert_close(same, plain(x, **arguments)[~padding])
            with use_domain(model, "multi"):
                other = model(x, **arguments)[~padding]
            assert (other - same).abs().max() > 1e-2
            back = select_domain(model, "multi")
            torch.testing.assert_close(back(x, **arguments)[~padding], other)
    assert back.layers[0].activation_relu_or_gelu == 1 and back.use_nested_tensor is plain.use_nested_tensor
    assert "fast_path" not in back.__dict__


# Gradient checkpointing


class Blocks(nn.Module):
    "Four layers, checkpointed in two halves."

    def __init__(self, context=False):
        super().__init__()
        self.halves = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.LayerNorm(4)) for _ in range(2))
        self.context, self.checkpointing = context, True

    def forward(self, x):
        for half in self.halves:
            options = {"context_fn": checkpoint_context(self)} if self.context else {}
            x = checkpoint(half, x, use_reentrant=False, **options) if self.checkpointing else half(x)
        return x


@pytest.mark.parametrize("share", [None, "statistics", "affine"])
@pytest.mark.parametrize("route", ["whole", "segments", "samples"])
@pytest.mark.parametrize("context", [True, False])
def test_checkpointing_gives_the_same_gradients_and_statistics(share, route, context):
    model = convert_multi_norm(Blocks(context).double(), share=share)
    plain = copy.deepcopy(model)
    plain.checkpointing = False

    def routed(m):
        if route == "whole":
            return use_domain(m, "multi")
        return split_domains(m, clean=4, multi=4) if route == "segments" else route_samples(m, torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]))

    x = torch.randn(8, 4, dtype=torch.float64)
    for m in (model, plain):
        with routed(m):
            loss = m(x).pow(3).sum()
            if not context:
                loss.backward()
        if context:
            loss.backward(retain_graph=True)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):  # every batch is seen once
        torch.testing.assert_close(a, b)
    if context:
        loss = model(x).sum()  # the block is over: the default answers, and is repeated
        loss.backward()


def test_checkpointing_without_the_route_is_refused():
    model = convert_multi_norm(Blocks())
    with use_domain(model, "multi"):
        loss = model(torch.rand(4, 4)).sum()
    with pytest.raises(RuntimeError, match=r"checkpoint_context\(model\).*inside the block"):
        loss.backward()


def test_timms_own_checkpointing_inside_the_block():
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    model = convert_multi_norm(timm.create_model("resnet18", num_classes=0))
    model.set_grad_checkpointing()
    with split_domains(model, clean=2, multi=2):
        model(torch.rand(4, 3, 32, 32)).sum().backward()
    assert model.bn1.domain_norms["multi"].num_batches_tracked == 1
    assert model.layer1[0].bn1.domain_norms["multi"].num_batches_tracked == 1
    assert model.layer1[0].bn1.domain_norms["single"].weight.grad is None


def test_samples_pass_through_a_whole_network():
    model = convert_multi_norm(SmallResNet(width=4).double()).train()
    index = torch.tensor([2, 0, 1, 0, 2, 1])
    for seed, norm in enumerate(m for m in model.modules() if isinstance(m, MultiNorm)):
        different(norm.domain_norms, seed)
    by_segment, order = copy.deepcopy(model), index.argsort(stable=True)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        model.train(training), by_segment.train(training)
        with route_samples(model, index), split_domains(by_segment, clean=2, single=2, multi=2):
            ours, theirs = model(x), by_segment(x[order])
        torch.testing.assert_close(ours[order], theirs)
    for a, b in zip(model.buffers(), by_segment.buffers(), strict=True):
        torch.testing.assert_close(a, b)
