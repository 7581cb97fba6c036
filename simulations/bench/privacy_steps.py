"""One step of DP-SGD beside Opacus', beside one in the clear, and with discrete noise beside Gaussian.

Needs no data set. Knows reference models and random inputs.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.core.compiler import without_compiler
from fedq.per_example import recorded
from fedq.privacy.clipping import clip_and_sum
from simulations.bench.quant_steps import BATCH, examples, fresh, in_training_format, noised_step
from simulations.bench.row import Row
from simulations.bench.timing import Contender, Effort, medians

MODELS = ("cnn", "mlp")
_CLIP_NORM = 1.0
_SHORTEST = 0.05  # seconds of one timing, at least
_MIB = 2**20

Step = Callable[[], object]


def rows(effort: Effort) -> Iterator[Row]:
    steps = {name: _beside_opacus(name, effort) for name in MODELS}
    yield from steps.values()
    for name in MODELS:
        yield _discrete(name, effort)
    for name in MODELS:
        yield _beside_sgd(name, effort)


def _beside_opacus(name: str, effort: Effort) -> Row:
    difference = _Opacus(name).difference(name)
    model, theirs = in_training_format(fresh(name)), _Opacus(name)
    steps = _count(lambda: noised_step(model))
    contenders: dict[str, Contender] = {
        "ours": lambda: noised_step(model, steps=steps),
        "opacus": lambda: theirs.seconds(max(2, steps // 8)),
    }
    ms = _milliseconds(contenders, effort)
    memory = (_peak(lambda: _gradients(in_training_format(fresh(name)))), _peak(theirs.step))
    words = (
        f"one step of DP-SGD on {name}, one thread, Gaussian noise: fedq's (a Poisson sample of {BATCH} examples on "
        "average, gradients of each, clipping, noise, SGD step) over Opacus' hooks and DPOptimizer as make_private "
        f"sets them up, on {BATCH} examples; clipped "
        f"sums differ by {difference:.1g}; at their peak gradients and clipping hold "
        f"{memory[0] / _MIB:.0f} and {memory[1] / _MIB:.0f} MiB"
    )
    return Row(f"dp_step_{name}", ms["ours"], ms["opacus"], "ms", "ours/reference", words)


def _discrete(name: str, effort: Effort) -> Row:
    model = in_training_format(fresh(name))
    steps = _count(lambda: noised_step(model))
    contenders: dict[str, Contender] = {
        "discrete": lambda: noised_step(model, noise="discrete", steps=steps),
        "gaussian": lambda: noised_step(model, steps=steps),
    }
    ms = _milliseconds(contenders, effort)
    words = (
        f"one step of fedq's DP-SGD on {name}, Poisson batches of {BATCH}, one thread: parts of one size, integer sums "
        "and discrete Gaussian noise over float32 sums and float64 Gaussian noise"
    )
    return Row(f"discrete_step_{name}", ms["discrete"], ms["gaussian"], "ms", "ours/reference", words)


def _beside_sgd(name: str, effort: Effort) -> Row:
    model, plain = in_training_format(fresh(name)), in_training_format(fresh(name))
    sgd, how = _sgd(plain)
    steps = _count(lambda: noised_step(model))
    contenders: dict[str, Contender] = {
        "ours": lambda: noised_step(model, steps=steps),
        "sgd": lambda: _seconds(sgd, 2 * steps),
    }
    ms = _milliseconds(contenders, effort)
    words = (
        f"one step of fedq's DP-SGD on {name}, batches of {BATCH}, one thread, over one of {how} SGD without privacy"
    )
    return Row(f"dp_step_vs_sgd_{name}", ms["ours"], ms["sgd"], "ms", "ours/reference", words)


class _Opacus:
    """What a user of Opacus runs by default, on a model as torch makes it: batches of one size."""

    def __init__(self, name: str) -> None:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.model = GradSampleModule(fresh(name))
        with without_compiler():
            sgd = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.optimizer = DPOptimizer(
            sgd, noise_multiplier=1.0, max_grad_norm=_CLIP_NORM, expected_batch_size=BATCH, loss_reduction="mean"
        )

    def step(self) -> None:
        inputs, targets = examples()
        self.optimizer.zero_grad()
        self._backward(inputs, targets)
        with without_compiler():
            self.optimizer.step()

    def seconds(self, steps: int) -> float:
        return _seconds(self.step, steps)

    def difference(self, name: str) -> float:
        """Of the sums of clipped gradients, relative: Opacus' and ours, of one model and batch."""
        reference = in_training_format(fresh(name))
        with torch.no_grad():
            for ours, theirs in zip(reference.parameters(), self.model.parameters(), strict=True):
                ours.copy_(theirs)
        self.optimizer.zero_grad()
        self._backward(*examples())
        self.optimizer.clip_and_accumulate()
        theirs = torch.cat([p.summed_grad.flatten().double() for p in self.model.parameters()])
        self.optimizer.zero_grad()
        return float((_gradients(reference) - theirs).norm() / theirs.norm())

    def _backward(self, inputs: Tensor, targets: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            functional.cross_entropy(self.model(inputs), targets).backward()


def _gradients(model: nn.Module) -> Tensor:
    """fedq's sum of clipped gradients."""
    inputs, targets = examples()
    with recorded(model) as recorder:
        functional.cross_entropy(model(inputs), targets, reduction="sum").backward()
        return clip_and_sum(recorder.take(BATCH), list(model.parameters()), _CLIP_NORM)


def _sgd(model: nn.Module) -> tuple[Step, str]:
    """A plain training step, and in a word how it is computed."""
    model.train()
    inputs, targets = examples()
    with without_compiler():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss() -> Tensor:
        return functional.cross_entropy(model(inputs), targets)

    def step_with(forward: Callable[[], Tensor]) -> Step:
        def step() -> None:
            optimizer.zero_grad()
            forward().backward()
            optimizer.step()

        return step

    compiled = step_with(torch.compile(loss, dynamic=False))
    try:
        compiled()
    except Exception as error:  # no C++ compiler, or one that it does not get on with
        return step_with(loss), f"eager (compiling failed: {type(error).__name__})"
    return compiled, "compiled"


def _count(one: Callable[[], float]) -> int:
    """Steps of a run that is long enough to be timed."""
    one()
    return 2 + math.ceil(_SHORTEST / one())


def _milliseconds(contenders: Mapping[str, Contender], effort: Effort) -> dict[str, float]:
    return {name: 1e3 * taken for name, taken in medians(contenders, repeats=effort.repeats, warmups=1).items()}


def _seconds(step: Step, times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - begun) / times


def _peak(step: Step) -> int:
    """Most bytes that torch's tensors held at one time beyond those before the step."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    found = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's libraries write notes of their own there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
