import copy
from collections.abc import Callable

import pytest
import torch
from quant_models import Across, Functional, Residual, Tied, Untraceable, mlp, relu_cnn, tanh_cnn
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant import QConv2d, QLinear, quantize
from fedq.quant.layers import QuantizedLayer


def placed(model: nn.Module, **options: object) -> dict[str, tuple[str, str]]:
    """Name -> (input grid, output grid)."""
    return {layer.name: (layer.input, layer.output) for layer in quantize(model, **options).layers}


def quantized_layers(model: nn.Module) -> list[QuantizedLayer]:
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]


def test_a_relu_becomes_the_grid_of_the_layer_before_it():
    model = mlp()
    assert placed(model, input_range=2.0, activation_range=6.0) == {
        "0": ("[-2, 2] fixed", "[0, 6] fixed"),
        "2": ("[0, 6] fixed", "float"),
    }
    assert quantized_layers(model)[1].input_grid is None  # on the grid already: no second rounding


def test_a_convolution_into_tanh_has_a_grid_before_and_after_the_tanh():
    assert placed(tanh_cnn(), input_range=2.0) == {
        "0": ("[-2, 2] fixed", "[-4, 4] fixed"),
        "3": ("[-1, 1] fixed", "[-4, 4] fixed"),
        "7": ("[-1, 1] fixed", "float"),
        "9": ("[-1, 1] fixed", "float"),
    }


def test_pooling_and_reshaping_keep_the_grid():
    layers = placed(relu_cnn())
    assert [layers[name][0] for name in ("3", "5", "8")] == ["[0, 8] fixed"] * 3


def test_functional_relu_and_an_addition_are_seen():
    assert placed(Residual()) == {
        "first": ("[-4, 4] fixed", "[0, 8] fixed"),
        "second": ("[0, 8] fixed", "[-8, 8] fixed"),
        "out": ("[0, 8] fixed", "float"),  # a sum after ReLU is not negative either
    }


def test_sigmoid_is_known_to_lie_between_0_and_1():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    assert placed(model, ranges="learned")["2"][0] == "[0, 1] fixed"


@pytest.mark.parametrize(
    ("last", "grid"),
    [
        (lambda out, h, c: out[:, -1], "[-1, 1] fixed"),
        (lambda out, h, c: h[-1], "[-1, 1] fixed"),
        (lambda out, h, c: torch.tanh(c)[-1], "[-1, 1] fixed"),
        (lambda out, h, c: c[-1], "[-8, 8] fixed"),  # a cell may grow by 1 in each step
    ],
    ids=["outputs", "hidden", "tanh of cells", "cells"],
)
def test_slices_of_an_lstm_s_states_keep_what_is_known_of_them(last: Callable[..., Tensor], grid: str):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, (h, c) = self.lstm(x)
            return self.out(last(out, h, c))

    assert placed(Last())["out"][0] == grid


def test_a_state_that_an_lstm_is_given_saturates_as_it_will_in_the_file():
    lstm = nn.LSTM(4, 6)
    quantize(lstm)
    state, cells, x = torch.full((1, 3, 6), 5.0), torch.zeros(1, 3, 6), torch.randn(2, 3, 4)
    grid = lstm.hidden_grid
    end = torch.full_like(state, grid.step * grid.highest)
    assert torch.equal(lstm(x, (state, cells))[0], lstm(x, (end, cells))[0])


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2, divisor_override=1), lambda x: functional.avg_pool2d(x, 2, divisor_override=1)]
)
def test_a_pooling_that_sums_does_not_keep_the_range(pool: Callable[[Tensor], Tensor]):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.out = pool, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.pool(torch.tanh(x)).flatten(1))

    assert placed(Pooled())["out"][0] == "[-8, 8] fixed"


def test_a_layer_called_twice_gets_a_grid_for_both_inputs():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    assert placed(Twice(), input_range=3.0)["layer"] == ("[-3, 3] fixed", "float")


def test_a_model_that_is_one_layer_is_swapped_in_place():
    model = nn.Linear(3, 2)
    quantize(model)
    assert isinstance(model, QLinear)
    assert model(torch.zeros(4, 3)).shape == (4, 2)


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    quantize(model)
    assert model[2].weight is model[0].weight


def test_without_a_graph_every_layer_has_its_own_input_grid():
    model = Untraceable()
    report = quantize(model)
    assert report.untraceable is not None
    assert "symbolically traced variables cannot be used as inputs to control flow" in report.untraceable
    assert all(layer.input_grid is not None for layer in quantized_layers(model))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("ranges", ["fixed", "learned", "observed"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (mlp, (64,)),
        (tanh_cnn, (1, 28, 28)),
        (relu_cnn, (1, 12, 12)),
        (Residual, (1, 8, 8)),
        (Functional, (1, 16, 16)),
    ],
)
def test_every_input_and_weight_of_a_layer_is_on_an_int8_grid(
    make: Callable[[], nn.Module], shape: tuple[int, ...], ranges: str
):
    torch.manual_seed(0)
    model = make()
    quantize(model, ranges=ranges)
    model.eval()
    seen: list[tuple[QuantizedLayer, Tensor]] = []
    for layer in quantized_layers(model):
        layer.register_forward_hook(lambda layer, inputs, _: seen.append((layer, inputs[0])))
    model(torch.randn(3, *shape) * 3)
    assert len(seen) == len(quantized_layers(model))
    for layer, x in seen:
        assert layer.source is not None
        grid = layer.source[0]
        levels = x.double() / float(grid.step)
        assert (levels - levels.round()).abs().max() < 1e-4
        assert grid.lowest <= levels.round().min() <= levels.round().max() <= grid.highest
        weight = layer.fake_quantized(layer.products[0])[0].detach()
        for channel in weight.flatten(start_dim=1):
            assert len(channel.unique()) <= 2 * 63 + 1


def test_keys_of_the_state_dict_stay_those_of_the_float_model():
    model = tanh_cnn()
    keys = list(model.state_dict())
    quantize(model)
    assert list(model.state_dict()) == keys


def test_learned_ranges_are_parameters_and_observed_ones_buffers():
    learned, observed = mlp(), mlp()
    quantize(learned, ranges="learned")
    quantize(observed, ranges="observed")
    assert {name for name, _ in learned.named_parameters()} - {name for name, _ in mlp().named_parameters()} == {
        "0.output_grid.log_range"
    }
    assert {name for name, _ in observed.named_buffers()} == {"0.input_grid.range", "0.output_grid.range"}


def test_an_observed_range_follows_the_data_in_training_only():
    model = mlp()
    quantize(model, ranges="observed", input_range=4.0)
    x = torch.full((2, 64), -14.0)
    model.eval()
    model(x)
    assert model[0].input_grid.range.item() == 4.0
    model.train()
    model(x)
    assert model[0].input_grid.range.item() == pytest.approx(4.0 + 0.1 * (14.0 - 4.0))
    model(torch.zeros(2, 64))  # says nothing about a range
    assert model[0].input_grid.range.item() == pytest.approx(5.0)


def test_float_activations_leave_weights_alone_quantized():
    model = mlp()
    report = quantize(model, activations=None)
    assert [(layer.input, layer.output) for layer in report.layers] == [("float", "float")] * 2
    x = torch.randn(3, 64)
    first = torch.relu(x @ model[0].fake_quantized(model[0].products[0])[0].T + model[0].bias)
    assert torch.allclose(
        model(x), first @ model[2].fake_quantized(model[2].products[0])[0].T + model[2].bias, atol=1e-5
    )


def test_a_skipped_layer_stays_float_and_the_report_says_why():
    model = tanh_cnn()
    report = quantize(model, skip=["7", "9*"])
    assert report.left_float == {"7": "named in quant.skip", "9": "named in quant.skip"}
    assert report.quantized == ("0", "3")
    assert type(model[7]) is nn.Linear
    assert "7 (Linear): float32, named in quant.skip" in str(report)


def test_a_skipped_container_leaves_every_layer_in_it_float():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    assert quantize(model, skip=["0"]).left_float == {"0.0": "named in quant.skip", "0.2": "named in quant.skip"}
    model = Tied()
    assert quantize(model, skip=["encoder"]).quantized == ("words", "output")
    assert type(model.encoder.self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize(
    ("make", "pattern", "message"),
    [
        (mlp, "1", r"quant\.skip='1': matches 1, without a layer to quantize, so it would have no effect"),
        (Across, "attention.out_proj", r"quant\.skip='attention\.out_proj': is quantized with its attention layer"),
        (Across, "*out*", r"quant\.skip='attention\.out_proj': is quantized with its attention layer"),
    ],
)
def test_a_pattern_that_would_leave_nothing_float_is_refused(make: Callable[[], nn.Module], pattern: str, message: str):
    with pytest.raises(ValueError, match=message):
        quantize(make(), skip=[pattern])
    assert quantize(Across(), skip=["attention*"]).left_float == {"attention": "named in quant.skip"}


def test_a_module_that_may_multiply_without_a_layer_can_be_named_for_the_export():
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    assert quantize(nn.Sequential(nn.Linear(4, 4), Squares()), skip=["1"]).quantized == ("0",)


def test_unsupported_layers_are_reported():
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 2), nn.Flatten(), nn.Linear(8, 2))
    assert quantize(model).left_float == {"0": "ConvTranspose1d is not supported"}


@pytest.mark.parametrize("activations", [8, None])
def test_a_layer_that_no_input_reaches_is_refused(activations: int | None):
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match=r"no input reaches 'idle' in eval mode.*quant\.skip"):
        quantize(Idle(), activations=activations)
    assert quantize(Idle(), activations=activations, skip=["idle"]).left_float == {"idle": "named in quant.skip"}


def test_a_copy_has_grids_of_its_own():
    model = mlp()
    quantize(model, ranges="learned")
    twin = copy.deepcopy(model)
    assert twin[2].source[0] is twin[0].output_grid
    with torch.no_grad():
        twin[0].output_grid.log_range.add_(1.0)
    assert model[2].source[0].describe() == "[0, 8] learned"


def test_any_stride_padding_and_grouping_computes_what_conv2d_does():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), groups=2, padding_mode="circular")
    plain = copy.deepcopy(layer)
    quantize(layer, input_range=4.0, activation_range=8.0)
    assert isinstance(layer, QConv2d)
    x = torch.randn(2, 4, 9, 9)
    # Steps: input 4/127, weights up to 0.25/63 with 12 products, output 8/127.
    bound = 12 * (4 / 127 / 2 * 0.3 + 0.3 / 63 / 2 * 4) + 8 / 127 / 2
    error = (layer(x) - plain(x)).abs().max().item()
    assert 0 < error < bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": 3}, r"weights=3: must be 8, 4 or 2 \(ternary\) bits"),
        ({"activations": 2}, r"activations=2: must be 8 or 4 bits, or None"),
        ({"granularity": "row"}, r"granularity='row': must be channel or tensor"),
        ({"rounding": "up"}, r"rounding='up': must be nearest or stochastic"),
        ({"weights": 4, "weight_range": 63}, r"weight_range=63: is for 8-bit weights"),
        ({"ranges": "guessed"}, r"ranges=guessed: must be one of fixed, learned, observed, dynamic"),
        ({"weight_range": 128}, r"quant\.weight_range=128: must be 1\.\.127"),
        ({"input_range": 0.0}, r"quant\.input_range=0\.0: must be a number from 0\.001"),
        ({"activation_range": float("nan")}, r"quant\.activation_range=nan: must be"),
        ({"skip": ["conv*"]}, r"quant\.skip='conv\*': matches no module; the model has 0, 1, 2"),
        ({"skip": ["*"]}, r"no layer to quantize \(0: named in quant\.skip.*use quant=off"),
    ],
)
def test_a_bad_option_names_key_value_and_rule(options: dict[str, object], message: str):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        quantize(model, **options)
    assert type(model[0]) is nn.Linear  # nothing half done


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(ValueError, match="no layer to quantize; use quant=off"):
        quantize(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_nan_weights_are_refused():
    model = mlp()
    model[2].bias.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"parameter '2\.bias' holds NaN"):
        quantize(model)


def test_quantizing_twice_is_refused():
    model = mlp()
    quantize(model)
    with pytest.raises(ValueError, match="0 is quantized already"):
        quantize(model)


def test_a_relu_in_place_and_one_used_twice_train_as_well():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.relu(self.second(self.relu(self.first(x)))))

    torch.manual_seed(0)
    shared = Shared()
    apart = nn.Sequential(shared.first, nn.ReLU(inplace=True), shared.second, nn.ReLU(inplace=True), shared.out)
    apart = copy.deepcopy(apart)
    x = torch.randn(5, 6)
    for model in (shared, apart):
        quantize(model)
        model(x).square().sum().backward()
    assert [type(module).__name__ for module in apart] == [
        "QLinear", "AbsorbedReLU", "QLinear", "AbsorbedReLU", "QLinear"
    ]  # fmt: skip
    for ours, theirs in zip(shared.parameters(), apart.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("seen", [True, False], ids=["traced", "untraceable in training"])
def test_a_relu_that_training_also_uses_elsewhere_stays_one(seen: bool):
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.hidden, self.out = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
            self.negative = torch.tensor([-1.0])

        def forward(self, x: Tensor) -> Tensor:
            y = self.out(self.relu(self.hidden(x)))
            if self.training:
                self.seen = self.relu(self.negative)
                if not seen and x.sum() > 0:
                    y = y + 1
            return y

    model = Auxiliary()
    quantize(model)
    assert type(model.relu) is nn.ReLU
    model.train()(torch.randn(3, 4))
    assert model.seen.item() == 0.0


def test_what_only_training_reads_of_a_layer_keeps_its_negative_values():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.hidden, self.out = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            return self.out(self.relu(h)) + (h.sum() if self.training else 0.0)

    assert placed(Auxiliary())["hidden"][1] == "float"  # no grid from 0, which would take them away


def test_a_relu_function_has_its_grid_at_its_readers_and_the_gradient_of_the_module():
    class Called(nn.Module):
        def __init__(self, layers: nn.Sequential) -> None:
            super().__init__()
            self.first, self.out = layers[0], layers[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.first(x)))

    torch.manual_seed(0)
    module = mlp()
    function, x = Called(copy.deepcopy(module)), torch.randn(50, 64)
    assert placed(function) == {"first": ("[-4, 4] fixed", "float"), "out": ("[0, 8] fixed", "float")}
    quantize(module)
    assert torch.equal(function(x), module(x))
    for model in (module, function):
        model(x).square().sum().backward()
    assert torch.equal(function.first.weight.grad, module[0].weight.grad)


def test_two_readers_of_a_relu_function_share_its_grid():
    assert placed(Functional()) == {
        "first": ("[-4, 4] fixed", "float"),
        "left": ("[0, 8] fixed", "[-8, 8] fixed"),
        "right": ("[0, 8] fixed", "[-8, 8] fixed"),
        "hidden": ("[-8, 8] fixed", "float"),
        "out": ("[0, 8] fixed", "float"),
    }


@pytest.mark.parametrize(("weight_range", "portable"), [(63, True), (64, True), (65, False), (127, False)])
def test_the_report_warns_of_weights_that_can_saturate(weight_range: int, portable: bool):
    report = quantize(mlp(), weight_range=weight_range)
    assert report.portable is portable
    assert ("can saturate on x86 without VNNI" in str(report)) is not portable


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["fixed", "learned", "observed"])
def test_the_whole_model_is_one_graph_to_torch_compile(ranges: str):
    torch.manual_seed(0)
    model = tanh_cnn()
    quantize(model, ranges=ranges)
    twin, x = copy.deepcopy(model), torch.randn(2, 1, 28, 28)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))


def test_ranges_that_a_layer_states_are_its_grids():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    model[0].input_range, model[0].output_range = (0.0, 1.0), (-0.5, 0.25)
    model[3].output_range = (-10, 10)
    assert placed(model, ranges="learned") == {
        "0": ("[0, 1] fixed", "[-0.5, 0.5] fixed"),
        "3": ("[-0.5, 0.5] fixed", "[-10, 10] fixed"),
    }


def test_stated_ranges_count_without_a_graph_too():
    class Lone(Untraceable):
        pass

    model = Lone()
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    layer.input_range, layer.output_range = (-3, 3), (0, 5)
    assert ("[-3, 3] fixed", "[0, 5] fixed") in placed(model).values()


@pytest.mark.parametrize("bad", [(0, 0), (1, -1), (0, float("inf"))])
def test_a_stated_range_that_is_none_is_refused(bad: tuple[float, float]):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].input_range = bad
    with pytest.raises(ValueError, match=r"a layer's range \(.*\): must be \(lowest, highest\)"):
        quantize(model)


def test_weights_that_are_not_trained_are_rounded_as_they_are_delivered():
    model = nn.Sequential(nn.Linear(64, 8).requires_grad_(False), nn.Linear(8, 2))
    quantize(model, rounding="stochastic")
    x = torch.randn(3, 64)
    torch.testing.assert_close(model.train()[0](x), model.eval()[0](x), rtol=0, atol=0)
