"""Attention and LSTM spelled out give what torch's own give: exactly, where every weight lies on its grid already."""

import copy

import pytest
import torch
from torch import nn

from fedq.quant import QLSTM, QMultiheadAttention, enable_per_example_gradients, quantize


def on_grid(module: nn.Module) -> nn.Module:
    """Weights that are whole multiples of a step, with the largest one in each row; so rounding changes nothing."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "weight" in name:
                parameter.copy_(torch.randint(-63, 64, parameter.shape) / 256)
                parameter[:, 0] = 63 / 256
    return module


def attention(**options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(8, 2, **options)  # type: ignore[arg-type]
    return on_grid(made)  # type: ignore[return-value]


def spelled(module: nn.Module, how: str) -> nn.Module:
    """Quantized with float activations, or spelled out in float."""
    twin = copy.deepcopy(module)
    holder = nn.Sequential(twin)
    if how == "quantized":
        quantize(holder, activations=None)
    else:
        enable_per_example_gradients(holder)
    return twin


PADDED = torch.tensor([[False, False, True], [False, False, False]])
MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)},
    "added": {"attn_mask": torch.arange(9.0).view(3, 3)},
    "by head": {"attn_mask": torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))},
    "padding": {"key_padding_mask": PADDED},
    "both": {"key_padding_mask": PADDED, "attn_mask": torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)},
    "every head's weights": {"average_attn_weights": False},
}


@pytest.mark.parametrize("how", ["quantized", "float"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_self_attention_is_torchs(options, bias, batch_first, how):
    plain = attention(batch_first=batch_first, bias=bias)
    ours = spelled(plain, how)
    assert type(ours) is QMultiheadAttention
    x = torch.randn(2, 3, 8) if batch_first else torch.randn(3, 2, 8)
    for got, expected in zip(ours(x, x, x, **options), plain(x, x, x, **options), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_attention_across_is_torchs():
    plain = attention(batch_first=True)
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    got, weights = spelled(plain, "quantized")(query, key, value)
    expected, expected_weights = plain(query, key, value)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-5)


def test_attention_of_one_sequence_without_a_batch_is_torchs():
    plain, x = attention(), torch.randn(3, 8)
    for got, expected in zip(spelled(plain, "quantized")(x, x, x), plain(x, x, x), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_encoder_of_torch_does_not_go_past_the_quantized_layers(mode):
    """Its fused path computes from the bare float weights: then grids would change nothing."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    plain = copy.deepcopy(layer).eval()
    quantize(layer, weights=2)
    getattr(layer, mode)()
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        assert not torch.allclose(layer(x), plain(x), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"kdim": 4}, "kdim or vdim"), ({"add_bias_kv": True}, "add_bias_kv"), ({"add_zero_attn": True}, "add_zero_attn")],
)
def test_attention_that_is_not_offered_stays_float_with_the_reason(options, why):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **options), "output": nn.Linear(8, 2)})
    model.forward = lambda x: model["output"](x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="quantized already"):
        quantize(model), quantize(model)
    assert type(model["attention"]) is nn.MultiheadAttention


LSTMS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("how", ["quantized", "float"])
@pytest.mark.parametrize("options", LSTMS.values(), ids=LSTMS)
@pytest.mark.parametrize("given", [True, False], ids=["state given", "zeros"])
def test_lstm_is_torchs(options, given, how):
    torch.manual_seed(0)
    plain = on_grid(nn.LSTM(4, 3, **options))
    ours = spelled(plain, how)
    assert type(ours) is QLSTM
    x = torch.randn(5, 2, 4).transpose(0, 1) if options.get("batch_first") else torch.randn(5, 2, 4)
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    state = (torch.randn(count, 2, 3), torch.randn(count, 2, 3)) if given else None
    got, expected = ours(x, state), plain(x, state)
    torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got[1], expected[1], atol=1e-6, rtol=1e-5)


def test_lstm_of_one_sequence_without_a_batch_is_torchs():
    plain, x = on_grid(nn.LSTM(4, 3)), torch.randn(5, 4)
    got, expected = spelled(plain, "quantized")(x), plain(x)
    torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got[1], expected[1], atol=1e-6, rtol=1e-5)


def test_a_packed_sequence_is_refused_with_the_mend():
    model = nn.LSTM(4, 3)
    holder = nn.Sequential(model)
    quantize(holder, activations=None)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    with pytest.raises(TypeError, match=r"not packed sequences; pad them, or name it in quant\.skip"):
        model(packed)
