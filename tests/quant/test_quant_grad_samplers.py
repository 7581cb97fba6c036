"""Per-sample gradients against the only oracle that cannot be wrong: one example at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import Across, Functional, Residual, Series, Tied, Tokens, example_inputs, mlp, relu_cnn, tanh_cnn
from torch import Tensor, nn
from torch.nn import functional

from fedq.models import resnet8_gn, transformer
from fedq.per_example import left_to_opacus, recorded
from fedq.quant import enable_per_example_gradients, quantize, register_grad_samplers
from fedq.quant.attention import QMultiheadAttention
from fedq.quant.grids import FixedGrid, LearnedGrid
from fedq.quant.layers import QuantizedLayer
from fedq.quant.recurrent import QLSTM

# Tight ranges, so that values are clamped and the masks matter.
TIGHT = {"input_range": 1.0, "activation_range": 0.3}
WIDE = {"input_range": 3.0, "activation_range": 1.0}  # where tight ones would let no gradient through
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (64,)),
    "tanh_cnn": (tanh_cnn, (1, 28, 28)),
    "relu_cnn": (relu_cnn, (1, 12, 12)),
    "residual": (Residual, (1, 8, 8)),
    "functional": (Functional, (1, 16, 16)),
    "embedding and lstm": (Tokens, (5,)),
    "lstm of two layers both ways": (lambda: Tokens(num_layers=2, bidirectional=True), (5,)),
    "tied weights and torch's encoder": (Tied, (5,)),
    "attention across": (Across, (4, 8)),
    "conv1d": (Series, (4, 8)),
    "resnet8_gn": (lambda: resnet8_gn((1, 8, 8), 10), (1, 8, 8)),
    "transformer": (lambda: transformer((1, 8, 8), 10, width=16), (1, 8, 8)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Flatten()), (5, 6)),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, dilation=2, padding=2, padding_mode="reflect"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        ),
        (1, 8, 8),
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's, of the first layer


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_grad_samplers()


def summed_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y, reduction="sum")


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        summed_loss(model, x[i : i + 1], y[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            rows[name].append(parameter.grad.clone())
    model.zero_grad()
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def per_sample(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    from opacus import GradSampleModule

    hooked = GradSampleModule(model, loss_reduction="sum", strict=True)
    summed_loss(hooked, x, y).backward()
    samples = {name: parameter.grad_sample for name, parameter in model.named_parameters()}
    hooked.remove_hooks()
    return samples


SETTINGS = {
    "fixed": {},
    "learned": {"ranges": "learned"},
    "dynamic": {"ranges": "dynamic"},
    "4 bits": {"weights": 4, "activations": 4},
    "ternary": {"weights": 2},
    "one step a tensor": {"granularity": "tensor"},
    "float activations": {"activations": None},
    "skipped": {"skip": ["*"]},  # float, but what Opacus does not know is spelled out
}


def quantized_with_batch(name: str, setting: str, batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model of MODELS at one of SETTINGS, in float64, and made-up examples with targets."""
    torch.manual_seed(4 if name.startswith("tied") else 3)
    make, shape = MODELS[name]
    model = make().double()
    if setting == "skipped":
        enable_per_example_gradients(model)
    else:
        quantize(model, **{**TIGHT, **(WIDE if name == "conv1d" else {}), **SETTINGS[setting]})
    for number, grid in enumerate(m for m in model.modules() if isinstance(m, FixedGrid)):
        # A mean of values on one grid is often right between two levels of the same one: no two shall be the same.
        grid._step *= 1 + 0.01 * number
    x, y = example_inputs(shape, batch), torch.randint(0, 10, (batch,))
    x = x.double() if x.is_floating_point() else x
    return model, x, y


# A batch of one where a squeezed axis would show; every batch of one in make test-slow.
BATCHES = [
    pytest.param(batch, setting, marks=pytest.mark.slow if batch == 1 and setting not in ("fixed", "skipped") else [])
    for batch in (1, 5)
    for setting in SETTINGS
]


@pytest.mark.parametrize(("batch", "setting"), BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_per_sample_gradients_are_those_of_one_example_at_a_time(name: str, batch: int, setting: str):
    """In float64: sums in another order move a float32 value to the next level now and then, and its gradient.

    A sum of integers that is exactly 0 may come out as 1e-17 or as 0, and a ReLU's grid tells them apart: at
    these seeds none does.
    """
    model, x, y = quantized_with_batch(name, setting, batch)
    expected, got = one_at_a_time(model, x, y), per_sample(model, x, y)
    assert got.keys() == expected.keys()
    for key, gradients in expected.items():
        assert got[key].shape == gradients.shape
        # The promise is 1e-5; a thousandth of the largest beside it, lest small gradients pass unchecked.
        assert (largest := gradients.abs().max()) > 0, f"{key}: zeros would prove nothing"
        assert (got[key] - gradients).abs().max() < min(1e-5, 1e-3 * largest), key


@pytest.mark.parametrize("setting", ["fixed", "learned", "dynamic", "skipped"])
@pytest.mark.parametrize("name", MODELS)
def test_fedq_s_own_recorder_finds_the_same(name: str, setting: str):
    """With Opacus' hooks on attention and recurrence only."""
    model, x, y = quantized_with_batch(name, setting, 5)
    expected = one_at_a_time(model, x, y)
    names = {parameter: name for name, parameter in model.named_parameters()}
    with recorded(model) as recorder:
        summed_loss(model, x, y).backward()
        got = {names[c.parameter]: c.dense().rows for c in recorder.take(5)}
    assert got.keys() == expected.keys()
    for key, gradients in expected.items():
        assert (got[key].view(gradients.shape) - gradients).abs().max() < min(1e-5, 1e-3 * gradients.abs().max()), key
    is_fedq_layer = any(isinstance(layer, (QMultiheadAttention, QLSTM)) for layer in model.modules())
    assert bool(left_to_opacus(model)) == is_fedq_layer


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "replicate"]),
    seed=st.integers(0, 1000),
)
def test_per_sample_gradients_are_exact_for_any_convolution(kernel, stride, padding, dilation, groups, mode, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, padding_mode=mode)
    # In float64 and without a ReLU, for the reasons above: here the seeds are any.
    model = nn.Sequential(layer, nn.Flatten()).double()
    quantize(model, **TIGHT)
    x, y = torch.randn(3, 4, 7, 6, dtype=torch.float64), torch.tensor([0, 1, 0])
    expected, got = one_at_a_time(model, x, y), per_sample(model, x, y)
    for key, gradients in expected.items():
        assert (got[key] - gradients).abs().max() < 1e-5, key


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_an_empty_batch_has_no_gradients(ranges: str):
    model = tanh_cnn()
    quantize(model, ranges=ranges)
    samples = per_sample(model, torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64))
    shapes = {name: (0, *parameter.shape) for name, parameter in model.named_parameters()}
    assert {name: tuple(sample.shape) for name, sample in samples.items()} == shapes


def test_channels_last_changes_no_gradient():
    torch.manual_seed(0)
    model = relu_cnn()
    quantize(model, **TIGHT)
    x, y = torch.randn(4, 1, 12, 12), torch.randint(0, 10, (4,))
    expected = one_at_a_time(model, x, y)
    got = per_sample(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), y)
    for key, gradients in expected.items():
        assert (got[key] - gradients).abs().max() < 1e-5, key


def test_a_frozen_layer_has_no_gradients_and_the_others_do():
    torch.manual_seed(0)
    model = mlp()
    quantize(model, ranges="learned", **TIGHT)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("2." in name)
    x, y = torch.randn(3, 64), torch.randint(0, 10, (3,))
    from opacus import GradSampleModule

    summed_loss(GradSampleModule(model, loss_reduction="sum"), x, y).backward()
    assert {name for name, p in model.named_parameters() if getattr(p, "grad_sample", None) is not None} == {
        "2.weight",
        "2.bias",
    }


@pytest.mark.parametrize("name", ["attention across", "lstm of two layers both ways"])
def test_a_step_that_is_broken_off_leaves_nothing_in_a_layer(name: str):
    """Nor do two calls at once share anything: what a call computed is kept by its own hooks."""
    from opacus import GradSampleModule

    def held(layer: QuantizedLayer) -> dict[str, int]:
        return {key: len(value) if isinstance(value, list) else 1 for key, value in vars(layer).items()}

    torch.manual_seed(3)
    make, shape = MODELS[name]
    model = make()
    quantize(model)
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    before = [held(layer) for layer in layers]
    hooked = GradSampleModule(model, loss_reduction="sum")
    hooked(example_inputs(shape, 3))  # and no backward pass
    for layer in layers:
        del layer.activations  # Opacus' own
    assert [held(layer) for layer in layers] == before


def test_a_learned_range_stays_positive_under_any_noise():
    grid = LearnedGrid(8.0, signed=False)
    with torch.no_grad():
        grid.log_range.sub_(50.0)
    assert 0 < grid.step.item() < 1e-20
    assert torch.isfinite(grid(torch.randn(3, 4))).all()
