"""Reference models: sizes counted by hand, every input size up to the stated least, and clear refusals."""

import itertools

import pytest
import torch
import torch.fx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedq.models import ACTIVATIONS, cnn, linear, mlp


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (linear((1, 8, 8), 10), 64 * 10 + 10),
        (linear((13,), 1), 13 + 1),
        (mlp((1, 8, 8), 10), 64 * 64 + 64 + 64 * 10 + 10),
        (mlp((5,), 2, hidden=[7, 3]), 5 * 7 + 7 + 7 * 3 + 3 + 3 * 2 + 2),
        # Table 1 on 28x28 ends in 32 maps of 4x4, and so does the half scale on 8x8.
        (cnn((1, 28, 28), 10), (16 * 64 + 16) + (32 * 16 * 16 + 32) + (512 * 32 + 32) + (32 * 10 + 10)),
        (cnn((1, 8, 8), 10), (16 * 16 + 16) + (32 * 16 * 4 + 32) + (512 * 32 + 32) + (32 * 10 + 10)),
    ],
)
def test_model_has_the_parameters_counted_by_hand(model, expected):
    assert num_parameters(model) == expected


def test_cnn_on_fashion_mnist_has_26010_parameters():
    assert num_parameters(cnn((1, 28, 28), 10)) == 26_010


CASES = {
    "linear": (linear, 8, {}),
    "mlp": (mlp, 8, {}),
    "tanh-mlp": (mlp, 8, {"hidden": (9, 5), "activation": "tanh"}),
    "cnn-at-half-scale": (cnn, 8, {}),
    "cnn": (cnn, 28, {}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def model_and_batch(request):
    """A model with 3 outputs and a batch of 4 images for it."""
    build, side, options = request.param
    torch.manual_seed(0)
    return build((1, side, side), 3, **options), torch.randn(4, 1, side, side)


def test_output_has_one_row_an_example(model_and_batch):
    model, batch = model_and_batch
    assert model(batch).shape == (4, 3)
    torch.testing.assert_close(model(batch[1:2]), model(batch)[1:2])  # each example by itself


def test_model_is_a_sequence_of_torch_layers_that_ends_in_logits(model_and_batch):
    model, _ = model_and_batch
    assert type(model) is nn.Sequential
    assert all(type(layer).__module__.startswith("torch.nn.modules") for layer in model)
    assert type(model.output) is nn.Linear
    assert list(model.named_children())[-1][0] == "output"


def test_symbolic_trace_computes_the_same(model_and_batch):
    model, batch = model_and_batch
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(batch), model(batch), rtol=0, atol=0)


def test_every_parameter_learns(model_and_batch):
    model, batch = model_and_batch
    gradients = torch.autograd.grad(model(batch).square().sum(), list(model.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_generator_state_decides_the_initial_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(cnn((1, 8, 8), 10).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_cnn_follows_the_order_of_table_1():
    conv, pool, full = "Conv2d", "MaxPool2d", "Linear"
    expected = [conv, "Tanh", pool, conv, "Tanh", pool, "Flatten", full, "Tanh", full]
    assert [type(layer).__name__ for layer in cnn((1, 28, 28), 10)] == expected


@pytest.mark.parametrize(
    ("side", "maps"), [(28, [14, 13, 5, 4]), (8, [7, 6, 5, 4]), (14, [7, 6, 2, 1]), (5, [4, 3, 2, 1])]
)
def test_cnn_maps_shrink_as_computed_by_hand(side, maps):
    signal, sides = torch.zeros(1, 1, side, side), []
    for layer in itertools.takewhile(lambda layer: not isinstance(layer, nn.Flatten), cnn((1, side, side), 10)):
        signal = layer(signal)
        if not isinstance(layer, nn.Tanh):
            sides.append(signal.shape[-1])
    assert sides == maps


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(5, 40), st.integers(5, 40))
def test_cnn_takes_any_image_of_at_least_5x5(channels, height, width):
    assert cnn((channels, height, width), 2)(torch.zeros(1, channels, height, width)).shape == (1, 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 28), "at least 5x5 pixels, and the input is 4x28; use model=mlp"),
        ((1, 28, 4), "at least 5x5 pixels, and the input is 28x4"),
        (
            (28, 28),
            r"takes images \(channels, height, width\), and the input is \(28, 28\); add a channel axis",
        ),
        ((13,), r"the input is \(13,\); add a channel axis to the data, or use model=mlp"),
    ],
)
def test_cnn_refuses_what_is_no_image(shape, message):
    with pytest.raises(ValueError, match=message):
        cnn(shape, 10)


@pytest.mark.parametrize("hidden", [(), (0,), (8, -1)])
def test_mlp_without_a_hidden_width_is_refused(hidden):
    with pytest.raises(ValueError, match=r"model\.hidden=\[.*\]: must be one or more widths of at least 1"):
        mlp((4,), 2, hidden=hidden)


def test_unknown_activation_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"model\.activation=gelu: must be one of relu, tanh"):
        mlp((4,), 2, activation="gelu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_has_the_activation_between_all_layers(activation):
    kind = ACTIVATIONS[activation]
    expected = [nn.Flatten, nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert [type(layer) for layer in mlp((4,), 2, hidden=(3, 3), activation=activation)] == expected


@pytest.mark.parametrize("build", [linear, mlp, cnn])
@pytest.mark.parametrize(
    ("shape", "num_outputs", "message"),
    [
        ((), 2, r"input shape \(\): each axis must be at least 1"),
        ((1, 0, 8), 2, r"input shape \(1, 0, 8\): each axis must be at least 1"),
        ((1, 8, 8), 0, "num_outputs=0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(build, shape, num_outputs, message):
    with pytest.raises(ValueError, match=message):
        build(shape, num_outputs)


def test_standardize_gives_each_example_mean_0_and_variance_1_of_its_own():
    net = mlp((1, 4, 4), 3, standardize="example")
    x = torch.randn(5, 1, 4, 4) * 7 + 3
    standardized = net[:2](x)
    assert torch.allclose(standardized.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(standardized.var(1, unbiased=False), torch.ones(5), atol=1e-3)
    assert torch.allclose(net[:2](x[:1]), standardized[:1], atol=1e-6)


def test_an_unknown_standardization_is_named():
    with pytest.raises(ValueError, match=r"model\.standardize=batch: must be one of none, example"):
        mlp((4,), 2, standardize="batch")
