"""The float reference model is the model as it was before `quantize`; its file computes the same in float32."""

import copy

import numpy as np
import pytest
import torch
from quant_models import Functional, Residual, Untraceable, mlp, relu_cnn, tanh_cnn
from torch import nn

from fedq.models import transformer
from fedq.quant import ExportError, Int8Model, quantize
from fedq.quant.float_reference import export_float32, float_base, float_reference
from fedq.quant.swap import LAYERS

SHAPES = {
    mlp: (64,),
    tanh_cnn: (1, 28, 28),
    relu_cnn: (1, 12, 12),
    Residual: (1, 8, 8),
    Functional: (1, 16, 16),
    Untraceable: (1, 8, 8),
}


@pytest.mark.parametrize("ranges", ["fixed", "learned", "observed"])
@pytest.mark.parametrize("make", SHAPES)
def test_the_twin_has_the_outputs_and_the_keys_of_the_model_before_quantization(make, ranges):
    torch.manual_seed(0)
    model = make().eval()
    inputs = torch.randn(5, *SHAPES[make])
    outputs, keys = model(inputs), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    quantize(model, ranges=ranges)
    twin = float_reference(model).eval()
    assert torch.equal(twin(inputs), outputs)
    assert list(twin.state_dict()) == keys
    assert [type(module) for module in twin.modules()] == classes


class Reader(nn.Module):
    """An embedding, a two-layer LSTM and a one-dimensional convolution over token numbers; for 6 of them."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 6, num_layers=2, batch_first=True)
        self.conv, self.out = nn.Conv1d(6, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.conv(self.lstm(self.embed(x))[0].transpose(1, 2)).flatten(1))


def test_layers_of_sequences_are_torch_s_again():
    torch.manual_seed(0)
    model, tokens = Reader().eval(), torch.randint(0, 20, (5, 6))
    outputs, keys = model(tokens), list(model.state_dict())
    quantize(model)
    twin = float_reference(model).eval()
    assert torch.equal(twin(tokens), outputs)
    assert list(twin.state_dict()) == keys


def test_attention_is_torch_s_again():
    torch.manual_seed(0)
    model = transformer((1, 8, 8), 10).eval()
    inputs = torch.randn(3, 1, 8, 8)
    outputs = model(inputs)
    keys = list(model.state_dict())
    quantize(model)
    twin = float_reference(model).eval()
    assert torch.equal(twin(inputs), outputs)
    assert list(twin.state_dict()) == keys


def test_the_quantized_model_is_untouched():
    model = tanh_cnn()
    quantize(model, ranges="learned")
    before, inputs = copy.deepcopy(model), torch.randn(2, 1, 28, 28)
    float_reference(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert torch.equal(model(inputs), before(inputs))


def test_a_twin_can_be_quantized_again():
    model = mlp()
    quantize(model)
    inputs, twin = torch.randn(4, 64), float_reference(model)
    quantize(twin)
    assert torch.equal(twin(inputs), model(inputs))


@pytest.mark.parametrize(("plain", "quantized"), LAYERS.items())
def test_every_quantized_layer_knows_its_float_base(plain, quantized):
    assert float_base(quantized) is plain


def test_a_layer_without_one_is_refused():
    class Own(nn.Module):
        pass

    with pytest.raises(TypeError, match="derives from no layer"):
        float_base(Own)


@pytest.mark.integration
def test_the_float_file_computes_what_the_twin_does(tmp_path):
    torch.manual_seed(0)
    model, inputs = relu_cnn().eval(), torch.randn(6, 1, 12, 12)
    expected = model(inputs).detach().numpy()
    quantize(model)
    export_float32(model, (1, 12, 12), tmp_path / "float.onnx")
    delivered = Int8Model(tmp_path / "float.onnx")
    assert delivered.int8_ops == {}
    np.testing.assert_allclose(delivered(inputs.numpy()), expected, atol=1e-5)


@pytest.mark.integration
def test_a_forward_that_no_graph_can_hold_is_refused(tmp_path):
    model = Untraceable()
    quantize(model)
    with pytest.raises(ExportError, match="cannot be captured"):
        export_float32(model, (1, 8, 8), tmp_path / "float.onnx")
    assert not list(tmp_path.iterdir())
