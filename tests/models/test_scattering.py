"""The fixed front computes Mallat's scattering, keeps to the ranges that it states, and is deliverable in integers."""

import mallat
import numpy as np
import pytest
import torch
from torch import nn

from fedq.models import scatter_cnn, scatter_linear
from fedq.models.scattering import Scattering
from fedq.quant import QLinear, export_onnx, quantize
from fedq.quant.int8_model import Int8Model

ORDERS = {0: slice(0, 1), 1: slice(1, 17), 2: slice(17, 81)}


@pytest.fixture
def images() -> np.ndarray:
    """Steps, waves and noise from -1 to 1, float32 (4, 1, 28, 28)."""
    y, x = np.mgrid[:28, :28]
    noise = np.random.default_rng(0).uniform(-1, 1, (28, 28))
    shapes = [np.where(x + y > 25, 1.0, -1.0), np.sin(0.8 * x), np.where(np.hypot(x - 14, y - 14) < 8, 1.0, 0.0), noise]
    return np.stack(shapes)[:, None].astype(np.float32)


@pytest.mark.parametrize("sides", [(28, 28), (8, 8), (13, 30), (5, 9), (64, 40)])
def test_coefficients_are_those_of_fourier_space(sides):
    images = np.random.default_rng(1).uniform(0, 1, (3, *sides)).astype(np.float32)
    expected = mallat.scattering(images)
    found = Scattering((1, *sides), largest=1.0)(torch.from_numpy(images)[:, None]).numpy()
    for order in ORDERS.values():
        # A filter's cut-off tail sums to 3e-5 of it, and what it meets is at most 1.
        assert np.abs(found - expected)[:, order].max() <= 3e-5
        assert np.abs(expected)[:, order].max() > 0.01


def test_a_constant_image_has_order_0_alone():
    coefficients = Scattering((1, 28, 28), largest=1.0)(torch.full((1, 1, 28, 28), 0.7))
    assert torch.allclose(coefficients[:, 0], torch.tensor(0.7), atol=1e-5)
    assert coefficients[:, 1:].abs().max() < 1e-4


def test_each_channel_of_an_image_is_scattered_by_itself(images):
    two = torch.from_numpy(np.concatenate([images, images[::-1]], axis=1))
    both = Scattering((2, 28, 28), largest=1.0)(two)
    one = Scattering((1, 28, 28), largest=1.0)
    torch.testing.assert_close(both[:, :81], one(two[:, :1]))
    torch.testing.assert_close(both[:, 81:], one(two[:, 1:]))


def test_stated_ranges_hold_what_comes(images):
    front = Scattering((1, 28, 28), largest=1.0)
    met = {}
    layers = {name: layer for name, layer in front.named_modules() if hasattr(layer, "input_range")}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, given, out, name=name: met.update({name: (given[0], out)}))
    front(torch.from_numpy(images))
    for name, layer in layers.items():
        for values, stated in zip(met[name], (layer.input_range, layer.output_range), strict=True):
            if stated is not None:
                lowest, highest = stated
                # What rings below 0 behind the low-pass filter is 1 % of the range, and lost.
                assert lowest - 0.01 * highest <= values.min()
                assert values.max() <= 1.001 * highest  # sums of float32


def test_only_the_linear_layer_learns_and_it_starts_from_0():
    model = scatter_linear((1, 28, 28), 10)
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad} == {
        "output.weight": (10, 81 * 7 * 7),
        "output.bias": (10,),
    }
    assert not model(torch.randn(2, 1, 28, 28)).any()


def test_groups_of_three_maps_have_mean_0_and_variance_1(images):
    # 30: a quiet group's variance is then far above the 1e-4 that GroupNorm adds to it.
    normal = scatter_linear((1, 28, 28), 10)[:2](30 * torch.from_numpy(images)).reshape(4, 27, -1)
    assert normal.mean(2).abs().max() < 1e-4
    assert normal[3].var(1, unbiased=False).sub(1).abs().max() < 0.1


def test_scatter_cnn_has_the_layers_of_the_paper():
    sizes = [tuple(p.shape) for p in scatter_cnn((1, 28, 28), 10).parameters() if p.requires_grad and p.dim() > 1]
    assert sizes == [(16, 81, 3, 3), (32, 16, 3, 3), (32, 32 * 4 * 4), (10, 32)]


@pytest.mark.parametrize("ranges", ["fixed", "learned", "observed"])
def test_grids_of_the_front_are_fixed_whatever_the_others_are(ranges):
    model = scatter_linear((1, 8, 8), 3)
    report = {layer.name: layer for layer in quantize(model, ranges=ranges).layers}
    assert not list(model.scattering.buffers())
    assert not any(p.requires_grad for p in model.scattering.parameters())
    assert report["scattering.fine"].input == "[-2.1, 2.1] fixed"
    assert report["scattering.fine"].output == "[-1.344, 1.344] fixed"
    assert report["scattering.low2.down"].input == "[0, 0.4301] fixed"


@pytest.mark.slow
def test_the_int8_file_answers_as_the_quantized_model(images, tmp_path):
    torch.manual_seed(0)
    model = scatter_linear((1, 28, 28), 10)
    nn.init.normal_(model.output.weight, std=0.02)
    quantize(model)
    export_onnx(model, (1, 28, 28), tmp_path / "model.onnx")
    delivered = Int8Model(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images))
    # Sums of floats in another order move a few values by a level: far less than the outputs' own spread.
    assert (torch.from_numpy(delivered(images)) - expected).abs().max() <= 0.02 * expected.std()
    assert delivered.float_products == []


def test_integers_change_the_normalised_coefficients_little(images):
    model, quantized = (scatter_linear((1, 28, 28), 10, largest=1.0) for _ in range(2))
    quantize(quantized)
    assert isinstance(quantized.output, QLinear)
    x = torch.from_numpy(images)
    exact, rounded = model[:2](x), quantized[:2](x)
    assert (exact - rounded).norm() <= 0.2 * exact.norm()


@pytest.mark.parametrize("build", [scatter_linear, scatter_cnn])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((784,), {}, r"takes images \(channels, height, width\)"),
        ((1, 4, 28), {}, "needs images of at least 5x5 pixels"),
        ((1, 28, 28), {"largest": 0.0}, r"model\.largest=0\.0: must be the largest magnitude of an input value"),
        ((1, 28, 28), {"eps": -1.0}, r"model\.eps=-1\.0: must be a positive number"),
        ((1, 28, 28), {"largest": float("inf")}, r"model\.largest=inf: must be"),
    ],
)
def test_what_cannot_be_scattered_is_refused(build, shape, options, message):
    with pytest.raises(ValueError, match=message):
        build(shape, 10, **options)
