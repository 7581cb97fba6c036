"""What an inspection says, against values by hand and against the model itself."""

import numpy as np
import pytest
import torch
from torch import nn

from fedq.quant import export_onnx, quantize
from fedq.quant.float_reference import float_reference
from fedq.quant.inspection import histogram, inspect
from fedq.quant.swap import enable_per_example_gradients


def layers(model, inputs, **options):
    """name -> LayerView of a model that is quantized here."""
    quantize(model, **options)
    return {layer.name: layer for layer in inspect(model, inputs).layers}


def grid(layer, role):
    (found,) = [g for g in layer.grids if g.role == role]
    return found


def two_linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))


def test_activations_that_all_lie_beyond_the_grid_are_clipped_to_the_last():
    found = layers(nn.Sequential(nn.Linear(4, 3)), torch.full((5, 4), 100.0), input_range=4.0)["0"]
    seen = grid(found, "input")
    assert seen.clipped == 1.0
    assert seen.used == pytest.approx(25.0)
    assert (seen.low, seen.high) == (pytest.approx(-4.0), pytest.approx(4.0))


def test_clipped_counts_values_beyond_either_end_and_no_others():
    inputs = torch.tensor([[5.0, -5.0, 3.9, 0.0]])
    assert grid(layers(nn.Sequential(nn.Linear(4, 3)), inputs, input_range=4.0)["0"], "input").clipped == 0.5


def test_what_a_relu_cuts_off_is_not_clipped():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(-torch.eye(2))
        model[0].bias.zero_()
    seen = grid(layers(model, torch.ones(4, 2))["0"], "output")
    assert (seen.low, seen.clipped, seen.used) == (0.0, 0.0, pytest.approx(0.0))


def test_weights_and_inputs_on_their_grids_lose_nothing():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[63.0, -21.0, 0.0], [1.0, 2.0, 63.0]]) / 63)
    inputs = torch.tensor([[127.0, 0.0, -64.0], [1.0, 2.0, 3.0]]) * (4 / 127)
    found = layers(model, inputs, input_range=4.0)["0"]
    assert found.own_error < 1e-6
    assert found.error < 1e-6


def test_a_weight_s_error_is_the_norm_of_its_rounding():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[7.0, 2.4]]))  # step 1 in 4 bits: 2.4 becomes 2
    found = layers(model, torch.tensor([[0.0, 1.0]]), weights=4, activations=None)["0"]
    assert found.own_error == pytest.approx(0.4 / 2.4)
    assert found.weights_error == found.own_error == found.error
    assert found.grids == ()


def test_zeros_levels_and_bytes_are_counted():
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0, -1.0], [2.0, 0.0, -2.0, 0.001]]))
    (weight,) = layers(model, torch.ones(1, 4), weights=2)["0"].weights
    assert weight.zeros == 0.5
    assert weight.histogram == (2, 4, 2)
    assert weight.bytes == 8 + 2 * 4 + 2 * 4  # too small to be packed: 8 levels, 2 steps, 2 biases


def test_histograms_have_as_many_bins_as_levels_or_fifteen():
    assert histogram(np.array([-7, 0, 0, 7]), largest=7) == (1, *[0] * 6, 2, *[0] * 6, 1)
    assert len(histogram(np.arange(-63, 64), largest=63)) == 15


def test_bits_and_sparsity_show_in_the_bytes():
    def weights(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64, bias=False))
        with torch.no_grad():
            model[0].weight[torch.rand(64, 64) < options.pop("pruned", 0.0)] = 0.0
        return layers(model, torch.ones(1, 64), **options)["0"].weights[0]

    steps = 4 * 64
    assert [weights(weights=bits).bytes - steps for bits in (8, 4, 2)] == [4096, 2048, 1024]
    sparse = weights(pruned=0.9)
    assert sparse.zeros > 0.89
    assert sparse.bytes - steps < 2 * 0.12 * 4096


def test_a_skipped_layer_shows_float_and_loses_nothing_by_itself():
    found = layers(two_linears(), torch.randn(9, 6), skip=("0",))
    assert (found["0"].bits, found["0"].grids, found["0"].own_error) == (None, (), 0.0)
    assert found["0"].bytes == 4 * (6 * 8 + 8)
    assert found["2"].bits == 8


def test_the_last_sum_is_how_far_the_models_outputs_are_apart():
    torch.manual_seed(1)
    model, inputs = two_linears(), torch.randn(70, 6)
    with torch.no_grad():
        expected = model(inputs)
    found = layers(model, inputs, weights=4)
    with torch.no_grad():
        got = model.eval()(inputs)
    assert found["2"].error == pytest.approx(float((got - expected).norm() / expected.norm()), rel=1e-4)


def test_own_errors_are_those_of_a_model_quantized_in_one_layer():
    model, inputs = two_linears(), torch.randn(40, 6)
    found = layers(model, inputs, weights=4)
    alone = two_linears()
    with torch.no_grad():
        expected = alone(inputs)
        quantize(alone, weights=4, activations=None, skip=("0",))
        got = alone.eval()(inputs)
    assert found["2"].weights_error == pytest.approx(float((got - expected).norm() / expected.norm()), rel=1e-4)


def test_the_float_twin_is_the_one_that_speed_is_measured_against():
    model, numbers = Sequence(), torch.randint(12, (6, 5)).float()
    quantize(model, weights=4)
    with torch.no_grad():
        expected, got = float_reference(model).eval()(numbers), model.eval()(numbers)
    last = inspect(model, numbers).layers[-1]
    assert last.error == pytest.approx(float((got - expected).norm() / expected.norm()), rel=1e-3)


def test_layers_that_are_spelled_out_but_float_show_as_float():
    model = Sequence()
    quantize(model, skip=("lstm",))
    enable_per_example_gradients(model)
    found = {layer.name: layer for layer in inspect(model, torch.ones(3, 5)).layers}
    assert (found["lstm"].kind, found["lstm"].bits, found["lstm"].own_error) == ("LSTM", None, 0.0)
    assert found["lstm"].bytes == sum(4 * p.numel() for p in model.lstm.parameters())


def test_an_input_on_another_layer_s_grid_names_it():
    found = layers(two_linears(), torch.randn(9, 6))
    assert (found["0"].source, found["2"].source) == (None, "0")
    assert grid(found["0"], "output").used > 0
    assert found["2"].grids == ()


def test_the_model_is_untouched():
    model, inputs = two_linears(), torch.randn(9, 6)
    quantize(model, ranges="learned")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    model.train()
    inspect(model, inputs)
    assert model.training
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


class Sequence(nn.Module):
    """An embedding whose weight is the output's too, an LSTM of two layers, attention; for 5 numbers below 12."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.convolution = nn.Conv1d(8, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 12, bias=False)
        self.output.weight = self.embed.weight

    def forward(self, x):
        h = self.lstm(self.embed(x.long()))[0]
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.output(self.convolution(h.transpose(1, 2)).relu().mean(2))


@pytest.mark.parametrize("options", [{}, {"weights": 4}, {"weights": 2}, {"activations": None}, {"ranges": "dynamic"}])
def test_every_kind_of_layer_is_looked_into(options):
    torch.manual_seed(2)
    numbers = torch.randint(12, (6, 5)).float()
    found = layers(Sequence(), numbers, **options)
    assert [layer.kind for layer in found.values()] == [
        "Embedding", "LSTM", "MultiheadAttention", "Linear", "Conv1d", "LayerNorm", "Linear"
    ]  # fmt: skip
    assert [w.name for w in found["lstm"].weights] == [
        f"lstm.weight_{way}_l{n}" for n in (0, 1) for way in ("ih", "hh")
    ]
    assert found["output"].weights[0].tied_to == "embed.weight"
    quantized = [layer for layer in found.values() if layer.bits is not None]
    assert all(0 < layer.own_error < 1.5 for layer in quantized)
    assert found["norm"].own_error == 0 < found["norm"].error
    roles = [] if "activations" in options else ["input", "hidden"]
    assert sorted(g.role for g in found["lstm"].grids) == sorted(roles)
    if options.get("ranges") == "dynamic":
        assert grid(found["lstm"], "input").high is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("tied", "bits"),
    [(False, 8), (True, 4), *(pytest.param(*c, marks=pytest.mark.slow) for c in [(False, 4), (True, 8)])],
)
def test_bytes_are_those_of_the_file(tied, bits, tmp_path):
    import onnx

    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64, bias=False))
    if tied:
        model[2].weight = model[0].weight
    quantize(model, weights=bits)
    export_onnx(model, (64,), tmp_path / "model.onnx")
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    zero_points = sum(len(t.raw_data) for t in tensors if len(t.dims) == 1 and t.data_type == onnx.TensorProto.INT8)
    inside = sum(len(t.raw_data) for t in tensors if t.dims) - zero_points
    assert inspect(model, torch.ones(1, 64)).int8_bytes == inside


def test_a_tied_weight_is_one_parameter():
    model = Sequence()
    own = sum(p.numel() for p in model.parameters())
    quantize(model)
    assert inspect(model, torch.ones(2, 5)).parameters == own


def test_in_place_operations_after_a_layer_change_no_error():
    def net(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=inplace), nn.Flatten())

    images = torch.randn(3, 1, 6, 6)
    errors = [[layer.error for layer in layers(net(way), images).values()] for way in (False, True)]
    assert errors[0] == errors[1]


def test_a_layer_that_is_called_twice_is_compared_call_by_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.linear(x) * 100)

    found = layers(Twice(), torch.randn(8, 4), activations=None)["linear"]
    assert 0 < found.error < 0.1


def test_the_worst_layer_is_the_one_of_fewest_bits():
    model = two_linears()
    quantize(model, weights=2, skip=("0",))
    assert inspect(model, torch.randn(9, 6)).worst.name == "2"


@pytest.mark.parametrize(("model", "count", "words"), [("float", 3, "no quantized layer"), ("int8", 0, "no example")])
def test_what_cannot_be_inspected_is_refused(model, count, words):
    net = two_linears()
    if model == "int8":
        quantize(net)
    with pytest.raises(ValueError, match=words):
        inspect(net, torch.zeros(count, 6))


def test_a_model_that_diverged_is_refused():
    model = two_linears()
    quantize(model)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight: holds NaN"):
        inspect(model, torch.zeros(3, 6))
