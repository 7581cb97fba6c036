"""What is watched, what is left to Opacus, and that nothing stays behind."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq import models
from fedq.per_example import Dense, Outer, left_to_opacus, recorded


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Odd(nn.Linear):
    """A layer of somebody's own, which Opacus differentiates as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def summed(outputs: Tensor) -> Tensor:
    return (torch.sin(outputs) * torch.arange(1, outputs[0].numel() + 1).view(outputs[0].shape)).sum()


def rows_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    names = {p: name for name, p in model.named_parameters()}
    with recorded(model) as recorder:
        summed(model(x)).backward()
        return {names[c.parameter]: c.dense().rows for c in recorder.take(len(x))}


def one_at_a_time(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.train()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(summed(model(x[i : i + 1])), trained) for i in range(len(x))]
    return {name: torch.stack([r[i].flatten() for r in rows]) for i, name in enumerate(names)}


def assert_same(model: nn.Module, x: Tensor) -> None:
    expected, got = one_at_a_time(model, x), rows_of(model, x)
    assert got.keys() == expected.keys()
    for name, rows in expected.items():
        torch.testing.assert_close(got[name], rows, rtol=1e-4, atol=1e-5 * float(1 + rows.abs().max()))


def test_a_layer_that_is_called_twice_yields_the_sum_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    assert_same(Twice(), torch.randn(3, 4))


def test_two_layers_that_share_a_parameter_yield_the_sum_of_both():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert_same(model, torch.randn(3, 4))


def test_a_parameter_shared_with_a_layer_that_opacus_gets_is_opacus_():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Odd(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    assert left_to_opacus(model) == {model[0], model[2]}
    assert_same(model, torch.randn(3, 4))


@pytest.mark.parametrize("kind", [Odd(6, 6), nn.InstanceNorm1d(2, affine=True), nn.RMSNorm(6)], ids=lambda k: type(k))
def test_a_layer_of_another_kind_is_left_to_opacus_and_the_rest_is_not(kind):
    model = nn.Sequential(nn.Linear(6, 6), kind, nn.Linear(6, 3))
    assert left_to_opacus(model) == {kind}
    assert_same(model, torch.randn(4, 2, 6) if type(kind) is nn.InstanceNorm1d else torch.randn(4, 6))


def test_all_within_a_module_that_opacus_takes_as_one_function_is_left_to_it():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.inner = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.gate * self.inner(x)

    model = nn.Sequential(nn.Linear(4, 4), Gated(), nn.Linear(4, 2))
    assert left_to_opacus(model) == {model[1], model[1].inner}
    assert_same(model, torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("bind", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_layer_whose_weight_is_computed_is_none_of_ours(bind):
    layer = bind(nn.Linear(4, 4))
    assert layer in left_to_opacus(nn.Sequential(layer))


def test_what_is_done_in_place_behind_a_layer_does_no_harm():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(2), nn.Linear(4, 5), nn.ELU(inplace=True)
    )
    assert_same(model, torch.randn(3, 1, 4, 4))


def test_an_input_that_is_changed_in_place_afterwards_is_an_error_and_no_wrong_gradient():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            y = self.second(x)
            x += 1.0
            return x + y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows_of(Adds(), torch.randn(3, 4))


def test_dropout_and_residuals_are_autograd_s_own_business():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

        def forward(self, x):
            y = self.norm(x + self.a(x))
            return functional.softmax(y, -1) * self.b(y) + y

    assert_same(Skips(), torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's, of Opacus' hook on the first layer
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "cnn_wide", "resnet8_gn"])
def test_gradients_of_the_reference_models_are_those_of_opacus(name):
    from opacus import GradSampleModule

    model = getattr(models, name)((1, 16, 16), 10)
    theirs = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    x = torch.randn(6, 1, 16, 16)
    summed(theirs(x)).backward()
    model.to(memory_format=torch.channels_last)
    assert left_to_opacus(model) == set()
    got = rows_of(model, x)
    for name, parameter in theirs._module.named_parameters():
        expected = parameter.grad_sample.flatten(1)
        assert (got[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_a_linear_layer_s_weight_is_kept_as_factors():
    model = models.mlp((5,), 3)
    with recorded(model) as recorder:
        summed(model(torch.randn(4, 5))).backward()
        kinds = [type(c) for c in recorder.take(4)]
    assert sorted(k.__name__ for k in kinds) == ["Dense", "Dense", "Outer", "Outer"]
    assert {Dense, Outer} == set(kinds)


def test_ordinary_gradients_are_not_computed_and_nothing_holds_the_graph():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with recorded(model) as recorder:
        summed(model(torch.randn(3, 4))).backward()
        assert all(p.grad is None for p in model.parameters())
        for contribution in recorder.take(3):
            assert not contribution.dense().rows.requires_grad
        assert recorder.take(3) == []


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left(fails):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), Odd(4, 4))
    model[1].eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}

    def use():
        with recorded(model) as recorder:
            summed(model(torch.randn(3, 1, 4, 4))).backward()
            if fails:
                raise RuntimeError("out of memory")
            recorder.take(3)

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            use()
    else:
        use()
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert {n: (v.keys(), v["training"]) for n, v in after.items()} == {
        n: (v.keys(), v["training"]) for n, v in before.items()
    }
    for module in model.modules():
        assert len(module._forward_hooks) + len(module._backward_hooks) == 0
    for parameter in model.parameters():
        assert (parameter.requires_grad, parameter.grad, vars(parameter)) == (True, None, {})


def test_examples_must_be_on_axis_0():
    model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"gradients for 15 examples in a batch of 3.*axis 0"):
        rows_of(model, torch.randn(3, 5, 4))


def test_a_weight_that_is_used_outside_of_its_layer_is_refused():
    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return functional.linear(self.layer(x), self.layer.weight)

    with pytest.raises(ValueError, match=r"parameter layer\.weight is used outside of its layer"):
        rows_of(Borrows(), torch.randn(3, 4))


def test_a_convolution_in_channels_last_that_opacus_would_get_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).to(memory_format=torch.channels_last)

    class Mine(nn.Conv2d):
        pass

    model.append(Mine(2, 2, 1))
    model[2].weight = model[0].weight
    model[0].weight.data = torch.randn(2, 2, 3, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"layer 0 is in channels_last.*contiguous_format"), recorded(model):
        pass


@pytest.mark.integration
def test_opacus_is_not_loaded_where_it_is_not_needed():
    code = (
        "import sys, torch; from fedq import models; from fedq.per_example import recorded\n"
        "m = models.cnn((1, 28, 28), 10)\n"
        "with recorded(m) as r: m(torch.zeros(2, 1, 28, 28)).sum().backward(); assert len(r.take(2)) == 8\n"
        "assert 'opacus' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
