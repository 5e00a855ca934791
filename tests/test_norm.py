"""Multi-domain norms beside separate batch norms, on real architectures, under threads and errors."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mdprop.model import SmallResNet
from mdprop.norm import MultiNorm, convert_multi_norm, domains_of, select_domain, split_domains, use_domain

DOMAINS = ("clean", "single", "multi")


@settings(max_examples=25, deadline=None)
@given(
    dims=st.sampled_from([1, 2, 3]),
    sizes=st.tuples(*[st.integers(0, 5)] * 3).filter(lambda s: sum(s) > 0),
    training=st.booleans(),
    affine=st.booleans(),
    momentum=st.sampled_from([0.1, None]),
)
def test_segments_are_separate_batch_norms(dims, sizes, training, affine, momentum):
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    make = lambda: kind(4, affine=affine, momentum=momentum, dtype=torch.float64)
    apart, together = [make() for _ in sizes], convert_multi_norm(make())
    for bn in (*apart, together):
        bn.train(training)
    x = torch.randn(sum(sizes), 4, *[3] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(sizes)))
    with split_domains(together, **dict(zip(DOMAINS, sizes, strict=True))):
        out = together(x)
    expected = torch.cat([bn(part) for bn, part in zip(apart, x.split(sizes), strict=True) if len(part)])
    torch.testing.assert_close(out, expected)
    for bn, mine in zip(apart, [together, *together.domain_norms.values()], strict=True):
        torch.testing.assert_close(mine.running_mean, bn.running_mean)
        torch.testing.assert_close(mine.running_var, bn.running_var)
        assert mine.num_batches_tracked == bn.num_batches_tracked


def timm_model(name):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    return timm.create_model(name, num_classes=0)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_100", "densenet121", "regnetx_002"])
def test_timm_backbones_convert_train_and_come_back(name):
    torch.manual_seed(0)
    original = timm_model(name).eval()
    x = torch.rand(6, 3, 64, 64)
    with torch.no_grad():
        expected = original(x)
        model = convert_multi_norm(copy.deepcopy(original), DOMAINS).eval()
        for domain in DOMAINS:
            with use_domain(model, domain):
                torch.testing.assert_close(model(x), expected)
    count = sum(isinstance(m, nn.BatchNorm2d) for m in original.modules())
    assert sum(isinstance(m, MultiNorm) for m in model.modules()) == count > 10
    model.train()
    with split_domains(model, clean=2, single=2, multi=2):
        model(x).square().sum().backward()
    for domain in DOMAINS:
        plain = select_domain(model, domain)
        assert not any(isinstance(m, MultiNorm) for m in plain.modules())
        timm_model(name).load_state_dict(plain.state_dict())
        with torch.no_grad(), use_domain(model.eval(), domain):
            torch.testing.assert_close(plain.eval()(x), model(x))


def test_a_norm_used_twice_stays_one_norm():
    norm = nn.BatchNorm1d(3)
    model = convert_multi_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert model[0] is model[2]
    assert domains_of(model) == DOMAINS


def test_frozen_norms_stay_frozen():
    model = SmallResNet(width=4)
    model.bn1.eval().requires_grad_(False)
    convert_multi_norm(model)
    assert all(not bn.training and not bn.weight.requires_grad for bn in (model.bn1, *model.bn1.domain_norms.values()))
    assert model.layer1[0].bn1.training


def test_threads_route_for_themselves():
    model = convert_multi_norm(nn.Sequential(nn.BatchNorm1d(1))).eval()
    for i, bn in enumerate([model[0], *model[0].domain_norms.values()]):
        bn.running_mean.fill_(i)
    barrier, seen = threading.Barrier(3), {}

    def work(domain):
        with use_domain(model, domain):
            barrier.wait()  # all three are inside their block at once
            seen[domain] = round(model(torch.zeros(1, 1)).item())
            barrier.wait()

    threads = [threading.Thread(target=work, args=(domain,)) for domain in DOMAINS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"clean": 0, "single": -1, "multi": -2}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_route_is_restored_after_an_error(error):
    model = convert_multi_norm(nn.BatchNorm1d(2))
    with pytest.raises(error), use_domain(model, "multi"):
        raise error
    assert model.router.route == (("clean", None),)


def test_a_single_row_gets_batch_norms_own_error():
    model = convert_multi_norm(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="more than 1 value per channel"), split_domains(model, clean=3, single=1):
        model(torch.rand(4, 2))


def test_a_converted_state_dict_round_trips():
    torch.manual_seed(0)
    one, other = (convert_multi_norm(SmallResNet(width=4)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, 16, 16)
    with use_domain(one.eval(), "multi"), use_domain(other.eval(), "multi"):
        torch.testing.assert_close(one(x), other(x))


def test_parts_converted_apart_are_refused():
    model = nn.Sequential(convert_multi_norm(nn.BatchNorm1d(2)), convert_multi_norm(nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="convert the whole model once"):
        domains_of(model)


def test_copies_and_pickles_are_the_same_model():
    import pickle  # what `torch.save(model)` and spawned processes do; mdprop itself never unpickles

    torch.manual_seed(0)
    model = convert_multi_norm(SmallResNet(width=4)).eval()
    model.bn1.domain_norms["multi"].running_mean += 1
    x = torch.rand(2, 3, 16, 16)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for domain in DOMAINS:
            with use_domain(model, domain), use_domain(twin, domain):
                torch.testing.assert_close(twin(x), model(x))
        assert twin.bn1.router is twin.layer1[0].bn1.router is not model.bn1.router


def test_clone_copies_statistics_and_reset_does_not():
    norm = nn.BatchNorm1d(3)
    norm.running_mean += 2
    for statistics, mean in (("clone", 2.0), ("reset", 0.0)):
        converted = convert_multi_norm(copy.deepcopy(norm), statistics=statistics)
        assert converted.running_mean.mean() == 2 and converted.domain_norms["multi"].running_mean.mean() == mean
