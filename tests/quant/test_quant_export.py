"""The delivered file: what is in it, what ran, and whether it says what the trained model says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quant_models import (
    TOKENS,
    Across,
    Functional,
    Residual,
    Series,
    Tied,
    Tokens,
    Untraceable,
    example_inputs,
    mlp,
    relu_cnn,
    tanh_cnn,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn import functional

from fedq.models import cnn_wide, resnet8_gn, transformer
from fedq.quant import ExportError, Int8Model, export_onnx, quantize, with_fixed_ranges
from fedq.quant.layers import QuantizedLayer
from fedq.quant.weights import WeightFormat, parameter_levels

slow = pytest.mark.slow  # an export takes half a second


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    inputs: Tensor  # (1797, ...), standard deviation about 1
    targets: Tensor
    path: Path


def trained_on_digits(model: nn.Module, inputs: Tensor, targets: Tensor, path: Path) -> Trained:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(120):
        batch = torch.randint(0, len(inputs), (64,), generator=order)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    model.eval()
    export_onnx(model, tuple(inputs.shape[1:]), path)
    return Trained(model, inputs, targets, path)


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) and labels."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return (images - 4.9) / 6.0, torch.tensor(targets)


@pytest.fixture(
    scope="module",
    params=[
        "mlp fixed",
        pytest.param("mlp learned", marks=slow),
        pytest.param("mlp observed", marks=slow),
        "tanh_cnn fixed",
    ],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    name, ranges = request.param.split()
    inputs, targets = digits()
    model = {"mlp": mlp, "tanh_cnn": tanh_cnn}[name]()
    quantize(model, ranges=ranges)
    inputs = functional.interpolate(inputs, size=28) if name == "tanh_cnn" else inputs.flatten(start_dim=1)
    return trained_on_digits(model, inputs, targets, tmp_path_factory.mktemp("export") / "model.onnx")


def outputs_of(model: nn.Module, inputs: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(inputs).numpy()


@pytest.mark.slow
def test_top_1_agrees_with_the_fake_quantized_model(trained: Trained):
    expected = outputs_of(trained.model, trained.inputs).argmax(axis=1)
    assert (expected == trained.targets.numpy()).mean() > 0.8, "agreement of a poor model would prove little"
    got = Int8Model(trained.path)(trained.inputs.numpy()).argmax(axis=1)
    assert (got == expected).mean() >= 0.999


@pytest.mark.integration
@pytest.mark.parametrize("batch", [1, 64])
def test_the_batch_changes_nothing(trained: Trained, batch: int):
    model, inputs = Int8Model(trained.path), trained.inputs[:128].numpy()
    whole = model(inputs)
    parts = [model(inputs[i : i + batch]) for i in range(0, 128, batch)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.integration
def test_more_examples_than_a_call_takes_come_back_in_order(trained: Trained):
    model, inputs = Int8Model(trained.path), trained.inputs[:1500].numpy()
    assert np.array_equal(model(inputs)[1400:], model(inputs[1400:]))


@pytest.mark.integration
def test_no_product_runs_on_floats(trained: Trained):
    model = Int8Model(trained.path)
    kernels = {"QGemm": 2} if len(trained.inputs.shape) == 2 else {"QGemm": 2, "QLinearConv": 2}
    assert {op: n for op, n in model.int8_ops.items() if op in ("QGemm", "QLinearConv")} == kernels
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"} & model.float_ops.keys()
    assert model.float_products == []


@pytest.mark.integration
def test_the_file_holds_the_layers_own_integers(trained: Trained):
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(trained.path).graph.initializer}
    layers = [module for module in trained.model.modules() if isinstance(module, QuantizedLayer)]
    weights = [tensor for tensor in tensors.values() if tensor.dtype == np.int8 and tensor.ndim > 1]
    biases = [tensor for tensor in tensors.values() if tensor.dtype == np.int32]
    assert len(weights) == len(biases) == len(layers)
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        assert layer.source is not None
        levels, _, bias_levels, _ = parameter_levels(layer.weight, layer.bias, layer.source[0].step, WeightFormat())
        assert np.array_equal(weight, levels.detach().numpy())
        assert bias_levels is not None
        assert np.array_equal(bias, bias_levels.detach().numpy())
        assert np.abs(weight).max() == 63


@pytest.mark.integration
def test_the_file_is_small_and_tells_nothing_of_its_maker(trained: Trained):
    content, parameters = trained.path.read_bytes(), sum(p.numel() for p in trained.model.parameters())
    assert len(content) <= 0.27 * 4 * parameters + 4000
    if parameters == 4810:
        assert len(content) < 11_000
    for word in (
        b"torch",
        b".py",
        b"/home",
        b"/usr",
        b"/tmp",
        b"site-packages",
        b"namespace",
        b"stack_trace",
    ):
        assert word not in content


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "shape", "linears"),
    [
        pytest.param(relu_cnn, (1, 12, 12), 1, marks=slow),
        (Residual, (1, 8, 8), 1),
        pytest.param(Functional, (1, 16, 16), 2, marks=slow),
    ],
)
def test_groups_residuals_and_float_norms_are_delivered(
    make: Callable[[], nn.Module], shape: tuple[int, ...], linears: int, tmp_path: Path
):
    torch.manual_seed(1)
    model = make()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    quantize(model, activation_range=2.0)
    model.eval()
    export_onnx(model, shape, tmp_path / "model.onnx")
    delivered, inputs = Int8Model(tmp_path / "model.onnx"), torch.randn(500, *shape)
    assert delivered.int8_ops["QLinearConv"] == convolutions
    assert delivered.int8_ops["QGemm"] == linears
    expected, got = outputs_of(model, inputs), delivered(inputs.numpy())
    assert (expected.argmax(axis=1) == got.argmax(axis=1)).mean() >= 0.998  # one of 500 may be a tie


@pytest.mark.integration
def test_extreme_values_are_exact_integers(tmp_path: Path):
    """Every product at its largest: 255 levels times 63, which 16-bit sums of pairs (32,130) just hold."""
    model = nn.Linear(200, 4)
    signs = torch.tensor([1.0, -1.0]).repeat(100)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.ones(200), -torch.ones(200), signs, -signs]))
        model.bias.copy_(torch.tensor([0.0, 1.0, -2.0, 3.0]))
    quantize(model, input_range=127.0)  # a step of 1
    model.eval()
    export_onnx(model, (200,), tmp_path / "model.onnx")
    x = np.stack([np.full(200, 1e6), np.full(200, -1e6), signs.numpy() * 1e6]).astype(np.float32)
    levels = np.clip(x, -128, 127).astype(np.int64)
    weights = np.array([np.ones(200), -np.ones(200), signs, -signs]).astype(np.int64) * 63
    bias = np.rint(np.array([0, 1, -2, 3]) * 63.0).astype(np.int64)
    exact = (levels @ weights.T + bias) / 63.0
    assert np.abs(Int8Model(tmp_path / "model.onnx")(x) - exact).max() <= 1e-6 * np.abs(exact).max()
    assert np.abs(outputs_of(model, torch.tensor(x)) - exact).max() <= 1e-6 * np.abs(exact).max()


@pytest.mark.integration
def test_a_skipped_layer_may_run_on_floats(tmp_path: Path):
    model = mlp()
    quantize(model, skip=["0"])
    with pytest.raises(ExportError, match=r"^0: a Gemm would be computed on float32.*quant\.skip=\['0'\]"):
        export_onnx(model, (64,), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    export_onnx(model, (64,), tmp_path / "model.onnx", skip=["0"])
    delivered = Int8Model(tmp_path / "model.onnx")
    assert delivered.int8_ops == {"QGemm": 1}
    assert len(delivered.float_products) == 1


@pytest.mark.integration
def test_a_float_product_that_is_allowed_covers_no_other(tmp_path: Path):
    """onnxruntime computes the skipped one once and for all, and the convolution on floats in its place."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skipped, self.conv = nn.Linear(8, 1), nn.Conv2d(1, 4, 3)
            self.register_buffer("given", torch.randn(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(1) + self.skipped(self.given)

    model = Constant()
    quantize(model, skip=["skipped"])
    model.conv.output_grid = None
    with pytest.raises(ExportError, match=r"would compute n\w+ \(.*Conv\) on float32 despite int8 weights"):
        export_onnx(model, (1, 8, 8), tmp_path / "model.onnx", skip=["skipped"])


@pytest.mark.integration
def test_export_leaves_the_model_as_it_was_and_gives_the_same_bytes_again(tmp_path: Path):
    model = mlp()
    quantize(model, ranges="learned")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    export_onnx(model, (64,), tmp_path / "first.onnx")
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    export_onnx(model, (64,), tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def _not_quantized() -> nn.Module:
    return mlp()


def _float_activations() -> nn.Module:
    model = mlp()
    quantize(model, activations=None)
    return model


def _diverged() -> nn.Module:
    model = mlp()
    quantize(model)
    model[2].weight.data[0, 0] = float("inf")
    return model


def _without_an_output_grid() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    quantize(model)
    model[0].output_grid = None
    return model


def _data_dependent() -> nn.Module:
    model = Untraceable()
    quantize(model)
    return model


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (_not_quantized, (64,), "no quantized layer"),
        (_float_activations, (64,), r"0: the activations are float.*quant\.activations=8"),
        (_diverged, (64,), r"2\.weight: holds NaN or infinity"),
        (_without_an_output_grid, (1, 8, 8), r"would compute .*Conv.* on float32 despite int8 weights"),
        (_data_dependent, (1, 8, 8), "forward cannot be captured for ONNX"),
    ],
)
def test_a_model_that_cannot_be_int8_leaves_the_old_file(
    make: Callable[[], nn.Module], shape: tuple[int, ...], message: str, tmp_path: Path
):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the one before")
    with pytest.raises(ExportError, match=message):
        export_onnx(make(), shape, path)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.integration
def test_inputs_of_another_shape_are_refused(trained: Trained):
    model = Int8Model(trained.path)
    with pytest.raises(ValueError, match=r"inputs have shape \(3, 5\): the model needs \(n, "):
        model(np.zeros((3, 5), dtype=np.float32))


@pytest.mark.integration
def test_no_examples_give_no_outputs(trained: Trained):
    assert Int8Model(trained.path)(trained.inputs[:0].numpy()).shape == (0, 10)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx: no such model file"):
        Int8Model(tmp_path / "absent.onnx")


DELIVERED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "embedding and lstm": (Tokens, TOKENS, {"QGemm": 12, "Gather": 1}),
    "lstm both ways": (lambda: Tokens(num_layers=2, bidirectional=True), TOKENS, {"QGemm": 42, "Gather": 1}),
    "tied weights and torch's encoder": (Tied, TOKENS, {"QLinearMatMul": 1, "Gather": 1}),
    "attention across": (Across, (4, 8), {"QLinearMatMul": 1}),
    "conv1d": (Series, (4, 8), {"QLinearConv": 2, "QGemm": 1}),
    "cnn_wide": (lambda: cnn_wide((1, 28, 28), 10), (1, 28, 28), {"QLinearConv": 4, "QGemm": 1}),
    "resnet8_gn": (lambda: resnet8_gn((1, 8, 8), 10), (1, 8, 8), {"QLinearConv": 9, "QGemm": 1}),
    "transformer": (lambda: transformer((1, 8, 8), 10), (1, 8, 8), {"QLinearMatMul": 2, "Gather": 1}),
}


QUICK = [("conv1d", "int8"), ("attention across", "int4")]
# Two of them in `make test`: an export of the larger ones takes seconds.
EXPORTS = [
    pytest.param(name, options, id=f"{name}-{kind}", marks=[] if (name, kind) in QUICK else pytest.mark.slow)
    for name in DELIVERED
    for kind, options in {"int8": {}, "int4": {"weights": 4}, "ternary": {"weights": 2}}.items()
]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "options"), EXPORTS)
def test_every_supported_layer_is_delivered_on_integers(name: str, options: dict[str, int], tmp_path: Path):
    torch.manual_seed(0)
    make, shape, kernels = DELIVERED[name]
    model = make()
    quantize(model, activation_range=3.0, **options)
    model.eval()
    dtype = torch.int64 if shape == TOKENS else torch.float32
    export_onnx(model, shape, tmp_path / "model.onnx", input_dtype=dtype)  # which refuses any float product
    delivered, inputs = Int8Model(tmp_path / "model.onnx"), example_inputs(shape, 500)
    assert delivered.float_products == []
    assert delivered(inputs[:0].numpy()).shape == (0, *model(inputs[:1]).shape[1:])
    assert {kind: delivered.int8_ops.get(kind, 0) for kind in kernels} == kernels
    expected, got = outputs_of(model, inputs), delivered(inputs.numpy())
    spread = np.abs(expected - expected.mean(axis=0)).mean()
    assert np.abs(got - expected).mean() < 0.01 * spread


@pytest.mark.integration
def test_four_bits_of_activations_keep_to_sixteen_levels(tmp_path: Path):
    torch.manual_seed(0)
    model = mlp()
    quantize(model, activations=4, activation_range=2.0)
    model.eval()
    export_onnx(model, (64,), tmp_path / "model.onnx")
    inputs = torch.randn(500, 64) * 3  # far beyond the range
    got = Int8Model(tmp_path / "model.onnx")(inputs.numpy())
    np.testing.assert_allclose(got, outputs_of(model, inputs), atol=1e-5)


@pytest.mark.slow
def test_a_product_of_a_users_own_names_its_module_and_line(tmp_path: Path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) @ x.mT)

    model = nn.Sequential(nn.Linear(4, 4), Own())
    quantize(model)
    with pytest.raises(ExportError, match=r"^1: a MatMul would be computed on float32 \(File .*test_quant_export.py"):
        export_onnx(model, (4, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    export_onnx(model, (4, 4), tmp_path / "model.onnx", skip=["1"])


class Picky(nn.Module):
    """Tokens 3 to 9, read off floats."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.output = nn.Embedding(7, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.words(x.long() - 3).mean(1))


@pytest.mark.integration
def test_a_file_is_compared_on_the_caller_s_examples_where_made_up_ones_are_none(tmp_path: Path):
    model = Picky()
    quantize(model)
    with pytest.raises(ExportError, match=r"fails on inputs of shape \(64, 5\).*give export_onnx some examples"):
        export_onnx(model, (5,), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    export_onnx(model, (5,), tmp_path / "model.onnx", examples=np.random.default_rng(0).integers(3, 10, (9, 5)))
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.integration
def test_dynamic_ranges_need_public_inputs(tmp_path: Path):
    torch.manual_seed(0)
    model, inputs = mlp(), torch.randn(100, 64)
    quantize(model, ranges="dynamic")
    with pytest.raises(ExportError, match=r"ranges are dynamic.*quant\.calibration=FILE\.npy"):
        export_onnx(model, (64,), tmp_path / "model.onnx")
    fixed = with_fixed_ranges(model, inputs)
    assert fixed[0].input_grid.describe() == f"[-{inputs.abs().max():g}, {inputs.abs().max():.4g}] fixed"
    export_onnx(fixed, (64,), tmp_path / "model.onnx")
    np.testing.assert_allclose(Int8Model(tmp_path / "model.onnx")(inputs.numpy()), outputs_of(fixed, inputs), atol=1e-5)


@pytest.mark.parametrize("inputs", [torch.zeros(0, 64), torch.full((2, 64), float("nan"))])
def test_public_inputs_must_be_there_and_finite(inputs: Tensor):
    model = mlp()
    quantize(model, ranges="dynamic")
    with pytest.raises(ValueError, match="give finite public inputs"):
        with_fixed_ranges(model, inputs)


@pytest.mark.integration
def test_a_file_that_computes_something_else_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Int8Model, "__call__", lambda self, inputs: -np.ones((len(inputs), 10), np.float32))
    model = mlp()
    quantize(model)
    with pytest.raises(ExportError, match="differ from the trained model's"):
        export_onnx(model, (64,), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
