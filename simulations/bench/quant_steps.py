"""One training step with quantization beside the same without, in the clear and under DP-SGD. Needs no data set."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq import models
from fedq.core.compiler import without_compiler
from fedq.privacy import DPSGD, DPPlan, Ledger, SeededRandom, SpendContext
from fedq.quant import enable_per_example_gradients, jit, quantize, register_grad_samplers
from simulations.bench.row import Row
from simulations.bench.timing import Contender, Effort, medians

MODELS = ("cnn", "mlp", "resnet8_gn", "transformer")
INPUT_SHAPE, NUM_OUTPUTS = (1, 28, 28), 10
BATCH = 256
_SHORTEST = 0.05  # seconds of one timing, at least
_SHARDS = 10  # expected batches in a shard that DP-SGD samples from
_NOISED_STEPS = 3  # of one run of DP-SGD; the first one warms up


def rows(effort: Effort) -> Iterator[Row]:
    jit.load()  # as a process has them that has trained for a minute
    for name in MODELS:
        yield _plain(name, effort)
    for name in MODELS:
        yield _private(name, effort)


def fresh(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """A reference model for Fashion-MNIST, of public random weights."""
    torch.manual_seed(seed)
    made: nn.Module = getattr(models, name)(INPUT_SHAPE, NUM_OUTPUTS, **options)
    return made


def in_training_format(model: nn.Module) -> nn.Module:
    """Laid out as fedq's trainer does it: channels_last where there are convolutions."""
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return model.to(memory_format=torch.channels_last if convolutions else torch.contiguous_format)


def _quantized(name: str) -> nn.Module:
    model = fresh(name)
    quantize(model)
    return model


def examples(count: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *INPUT_SHAPE, generator=generator)
    return inputs, torch.randint(0, NUM_OUTPUTS, (count,), generator=generator)


def _plain(name: str, effort: Effort) -> Row:
    steps = [_step(in_training_format(model)) for model in (_quantized(name), fresh(name))]
    for step in steps:
        step()
    begun = time.perf_counter()
    steps[1]()
    times = math.ceil(_SHORTEST / max(time.perf_counter() - begun, 1e-6))
    contenders: dict[str, Contender] = {
        "qat": lambda: _repeat(steps[0], times),
        "float32": lambda: _repeat(steps[1], times),
    }
    seconds = medians(contenders, repeats=2 * effort.repeats, warmups=2)
    ms = {kind: 1e3 * taken / times for kind, taken in seconds.items()}
    words = (
        f"zero_grad, forward, cross entropy, backward, SGD step of {name}, batch {BATCH}, eager, one thread: "
        "W8A8 QAT with fixed ranges over float32"
    )
    return Row(f"qat_step_{name}", ms["qat"], ms["float32"], "ms", "ours/reference", words)


def _repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def _step(model: nn.Module) -> Callable[[], None]:
    model.train()
    inputs, targets = examples()
    with without_compiler():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        with without_compiler():
            optimizer.step()

    return step


def _private(name: str, effort: Effort) -> Row:
    register_grad_samplers()
    quantized, plain = _quantized(name), fresh(name)
    enable_per_example_gradients(plain)  # of torch's attention Opacus has no per-example gradients
    for model in (quantized, plain):
        in_training_format(model)
    contenders: dict[str, Contender] = {"qat": lambda: noised_step(quantized), "float32": lambda: noised_step(plain)}
    seconds = medians(contenders, repeats=effort.repeats, warmups=1)
    words = (
        f"one noised step of fedq's DP-SGD on {name}, batch {BATCH} (sampling, per-example gradients, clipping, noise, "
        "SGD step), one thread: W8A8 QAT with fixed ranges over float32"
    )
    ms = {kind: 1e3 * taken for kind, taken in seconds.items()}
    return Row(f"qat_dp_step_{name}", ms["qat"], ms["float32"], "ms", "ours/reference", words)


def noised_step(model: nn.Module, *, noise: str = "gaussian", steps: int = _NOISED_STEPS) -> float:
    """Seconds of one step within a run of the real mechanism: from one optimizer step to the next."""
    plan = DPPlan(
        noise_multiplier=1.0,
        clip_norm=1.0,
        sample_rate=1 / _SHARDS,  # so that padding of Poisson batches is part of what is timed
        steps=steps,
        nominal_examples=_SHARDS * BATCH,
        target_epsilon=math.inf,
        delta=1e-5,
        accountant="rdp",
        noise=noise,
    )
    ticks: list[float] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        with without_compiler():
            made = torch.optim.SGD(parameters, lr=0.01)
        made.register_step_post_hook(lambda *_: ticks.append(time.perf_counter()))
        return made

    with tempfile.TemporaryDirectory() as folder:
        mechanism = DPSGD(plan, random=SeededRandom(0), ledger=Ledger(Path(folder) / "ledger.sqlite"))
        mechanism.run(
            model,
            *examples(_SHARDS * BATCH),
            loss=lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="sum"),
            make_optimizer=optimizer,
            context=SpendContext(data="random", run="bench", round=1),
        )
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)
