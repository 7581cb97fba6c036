"""The compiled forms give the bits of torch's own operations, whatever the values, and only where they may run."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedq.quant import jit
from fedq.quant.fake import fake_quantize, fake_quantize_in_range, fake_quantize_parameters
from fedq.quant.weights import WeightFormat

ODD = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 3e38, -0.3, 0.5, 1.5, -2.5, 127.5, -128.5, 255.5]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], tuple[Tensor, Tensor]]:
    """Runs a function with torch alone, then with the kernels."""
    kernels = jit.load()
    assert kernels is not None

    def run(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(jit, "kernels", lambda num_values: None)
        plain = function()
        monkeypatch.setattr(jit, "kernels", lambda num_values: kernels)
        return plain, function()

    return run


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Signs of zeros too; a NaN is a NaN."""
    equal = a.contiguous().view(torch.int32) == b.contiguous().view(torch.int32)
    return bool((equal | (a.isnan() & b.isnan())).all()) and a.stride() == b.stride()


def values(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 60
    x.flatten()[: len(ODD)] = torch.tensor(ODD)
    return x.to(memory_format=memory_format)


FORMATS = [((7, 5), torch.contiguous_format), ((2, 3, 5, 4), torch.channels_last)]


@pytest.mark.parametrize(("shape", "layout"), FORMATS)
@pytest.mark.parametrize("levels", [(-128, 127), (0, 255), (-8, 7), (0, 15)])
@pytest.mark.parametrize("step", [0.5, 4 / 127])
def test_snap_and_its_gradient(both, shape, layout, levels, step):
    x = values(shape, layout)

    def forward() -> Tensor:
        return fake_quantize(x, step, *levels)

    def backward() -> Tensor:
        # Torch itself passes a NaN's gradient at some places of a vector and not at others.
        z = x.nan_to_num(nan=1.0).requires_grad_()
        fake_quantize(z, step, *levels).backward(
            torch.arange(1.0, 1.0 + x.numel()).view(shape).to(memory_format=layout)
        )
        assert z.grad is not None
        return z.grad

    assert same_bits(*both(forward))
    assert same_bits(*both(backward))


def test_snap_within(both):
    x = values((7, 5))
    assert same_bits(*both(lambda: fake_quantize_in_range(x, 1 / 127)))


@pytest.mark.parametrize("form", [WeightFormat(), WeightFormat(4), WeightFormat(granularity="tensor")])
@pytest.mark.parametrize("step", [None, 4 / 127])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0])
def test_weights_and_biases(both, form, step, bad):
    torch.manual_seed(1)
    weight, bias = torch.randn(6, 3, 2, 2), torch.randn(6) * 1e7
    if bad is not None:
        weight[2] = bad
        bias[3] = bad
    for part in (0, 1):
        assert same_bits(*both(lambda part=part: fake_quantize_parameters(weight, bias, step, form)[part]))
    assert same_bits(*both(lambda: fake_quantize_parameters(weight, None, step, form)[0]))


@pytest.mark.parametrize(
    "x",
    [torch.randn(0, 3), torch.randn(4, 6)[:, ::2], torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4).T],
    ids=["empty", "strided", "float64", "transposed"],
)
def test_other_tensors_go_by_torch(x, monkeypatch):
    before = jit._work
    fake_quantize(x, 0.5, -128, 127)
    assert jit._work == before  # whoever asks for kernels counts work


PROGRAM = """
import torch
from fedq.quant import jit, quantize
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
quantize(model)
jit.LEAST_WORK = jit.LEAST_WORK_AFTER_NUMBA = {least}
for _ in range(3):
    model(torch.randn(4, 8)).sum().backward()
print(jit.kernels(0) is not None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("least", "environment", "printed"),
    [(10**9, {}, "False"), (10, {}, "True"), (10, {"FEDQ_JIT": "0"}, "False")],
    ids=["little work", "much work", "turned off"],
)
def test_kernels_are_loaded_once_they_pay(least, environment, printed):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(least=least)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == printed
