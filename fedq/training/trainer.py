"""One model, fitted or evaluated on one shard from given weights. Knows torch and DP-SGD; not rounds' order.

The same object serves every client of a process: whatever a client may change is written from the given
vector first, and random numbers come from the generators that are passed in.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fedq.algorithms import Correction
from fedq.codec import Layout
from fedq.core.compiler import without_compiler
from fedq.core.seeding import seeded
from fedq.data import Examples
from fedq.per_example import left_to_opacus
from fedq.privacy import DPSGD, DPEvidence, DPPlan, Ledger, RandomSource, SpendContext
from fedq.privacy.model_validation import device_of, refuse_mixing
from fedq.quant import register_grad_samplers
from fedq.training.arrays import load_vector, read_vector
from fedq.training.augmentation import Views
from fedq.training.correction import Corrected
from fedq.training.frozen_features import divided
from fedq.training.hardware import Hardware
from fedq.training.objectives import LOSSES, METRICS, Metric, summed
from fedq.training.pruned import Pruned, pruned_in, zero_gradients, zero_weights
from fedq.training.step import Step

# Examples in a batch of an evaluation. Larger feature maps do not fit a processor's cache, and parts of an evaluation
# that begin at multiples of it have the same batches, so the same bits, as the whole.
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Recipe:
    """How a client trains in one round. Exactly one of `epochs` and `steps` is set."""

    batch_size: int
    optimizer: str
    lr: float
    rounds: int
    epochs: float | None = None
    steps: int | None = None
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule: str = "constant"
    clip_grad: float | None = None
    loss: str = "cross_entropy"
    metric: str = "accuracy"
    autocast: str = "off"
    views: Views | None = None  # of each example, under DP; None: the example alone

    def lr_in(self, round: int) -> float:
        """Learning rate of round 1, 2, ... `rounds`."""
        progress = min(1.0, (round - 1) / self.rounds)
        factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return self.lr * factor[self.schedule]

    def num_steps(self, examples: int) -> int:
        """Optimizer steps of a round without DP, on so many examples."""
        batches = math.ceil(examples / min(self.batch_size, examples))
        return self.steps or math.ceil((self.epochs or 1.0) * batches)

    def make_optimizer(self, parameters: Any, round: int) -> torch.optim.Optimizer:
        kind = getattr(torch.optim, self.optimizer)
        with without_compiler():
            return kind(parameters, lr=self.lr_in(round), **self.optimizer_options)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PrivateFit:
    """What a fit under DP needs beside the data: all of it public but the random source."""

    plan: DPPlan
    random: RandomSource
    ledger: Ledger
    context: SpendContext
    paid: int | None = None  # the row of the ledger that pays for it, if it is written already


@dataclass(frozen=True)
class Fitted:
    """Weights after local training. Under DP `num_examples` and `loss` are for the client's own log only."""

    vector: np.ndarray
    num_examples: int
    loss: float | None
    evidence: DPEvidence | None = None


@dataclass(frozen=True)
class Evaluation:
    loss: float
    metric: float
    num_examples: int


class Trainer:
    """Fits and evaluates `model` (float or quantization-aware) by `recipe`, on `hardware`; arrays go in and out.

    `input_shape`: of one example; with it, what leading layers that nothing trains make of a shard is computed once.
    `mechanism`: what trains under DP; an audit gives its own.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        recipe: Recipe,
        hardware: Hardware | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        mechanism: type[DPSGD] = DPSGD,
    ) -> None:
        self.hardware = hardware or Hardware()
        self.model, self.layout, self.recipe = model.to(self.hardware.device), layout, recipe
        self.mechanism = mechanism
        self.metric: Metric = METRICS[recipe.metric]
        self._loss = LOSSES[recipe.loss]
        self._front, self._learner = (None, model) if input_shape is None else divided(model, input_shape)
        self._step = Step(self._learner, self._loss, self.hardware, full=recipe.batch_size, autocast=recipe.autocast)
        averaged = {s.name for s in layout.segments if s.role == "averaged"}
        # Counters, frozen weights and the like: no part of the vector, and the same at the start of every fit.
        self._rest = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if n not in averaged}
        self._at_start = {name: tensor.detach().clone() for name, tensor in self._rest.items()}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.trained_scalars = sum(s.size for s in layout.averaged if s.name in trained)
        # Averaged, but no parameters: running means, observed ranges. An optimizer's step makes no sense of them.
        self.statistics = tuple(s.name for s in layout.averaged if s.name not in trained)
        convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
        # NCHW max-pooling is slow on CPUs: channels_last halves a CNN's training time.
        self._format = torch.channels_last if convolutions else torch.contiguous_format
        self._set_format(self._format)

    def fit(
        self,
        weights: np.ndarray,
        examples: Examples,
        *,
        round: int,
        batches: np.random.Generator,
        torch_seed: int,
        private: PrivateFit | None = None,
        kept: np.ndarray | None = None,
        correction: Correction | None = None,
    ) -> Fitted:
        """Train from `weights` (float32, shape (layout.size,)) on the shard; the weights themselves are not changed.

        `batches` orders the examples and `torch_seed` seeds layers that draw, such as dropout. Under DP neither
        is used: batches, masks and views come from secret keystreams, since masks that others can search for tie every
        example's gradient to who comes before it. The spend is on disk before the first step. `kept`: bool of the same
        shape; weights where it is False begin and end as exactly 0.0, whatever the optimizer. `correction`: from the
        flat weights, a tensor of the same shape, to what is added to the gradient of each step: after clipping, and
        under DP after the noise.
        """
        self.load(weights)
        correct = None if correction is None else Corrected(self.model, self.layout, correction)
        pruned = pruned_in(self.model, self.layout, kept)
        self.model.train()
        self._set_format(self._format if private is None else self._private_format())
        if private is not None:
            return self._fit_privately(examples, private, round, pruned, correct)
        with seeded(torch_seed, *self.hardware.devices):
            inputs, targets = torch.from_numpy(self._seen(examples.inputs)), torch.from_numpy(examples.targets)
            loss = self._descend(inputs, targets, round, batches, pruned, correct)
        return Fitted(read_vector(self.model, self.layout), len(examples), loss)

    def _fit_privately(
        self, examples: Examples, private: PrivateFit, round: int, pruned: Pruned, correct: Corrected | None
    ) -> Fitted:
        views = self.recipe.views
        # Views are drawn anew in each step, so a fixed front has to see every one of them.
        learner, seen = (self._learner, self._seen(examples.inputs)) if views is None else (self.model, examples.inputs)
        mechanism = self.mechanism(private.plan, random=private.random, ledger=private.ledger, paid=private.paid)
        evidence = mechanism.run(
            learner,
            torch.from_numpy(seen),
            torch.from_numpy(examples.targets),
            loss=summed(self._loss),
            make_optimizer=lambda parameters: self.recipe.make_optimizer(parameters, round),
            context=private.context,
            pruned=pruned,
            correct=correct,
            augment=None if views is None else views.of,
            views=1 if views is None else views.count,
        )
        return Fitted(read_vector(self.model, self.layout), len(examples), None, evidence)

    def _private_format(self) -> torch.memory_format:
        """Opacus' per-example gradients of nn.Conv2d are wrong on channels_last tensors; fedq's own are not."""
        register_grad_samplers()  # without them nobody can tell a quantized layer's per-example gradients
        theirs = any(type(layer) is nn.Conv2d for layer in left_to_opacus(self.model))
        return torch.contiguous_format if theirs else self._format

    def evaluate(self, weights: np.ndarray, examples: Examples) -> Evaluation:
        """Mean loss and the metric of a flat model on a set of examples."""
        return score(self.outputs(weights, examples.inputs), examples, self._loss, self.metric)

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> torch.Tensor:
        """Outputs (n, k) of a flat model; a part that begins at a multiple of EVALUATION_BATCH has the whole's bits."""
        self.load(weights)
        self._set_format(self._format)
        return self.model_outputs(inputs)

    def count_right(self, weights: np.ndarray, examples: Examples) -> tuple[int, int]:
        """(right, wrong) answers of a flat model by the accuracy metric; no answers of no examples.

        ValueError for a model whose answer for one example depends on others: then one more could change many.
        """
        inputs = torch.from_numpy(examples.inputs[:0])
        refuse_mixing(self.model, tuple(inputs.shape[1:]), inputs.dtype, training=False)
        if not len(examples):
            return 0, 0
        self.load(weights)
        # One at a time: in a batch, float32 kernels may round an example otherwise than beside other neighbours.
        alone = [self.model_outputs(examples.inputs[i : i + 1])[0].argmax() for i in range(len(examples))]
        right = sum(int(top) == int(target) for top, target in zip(alone, examples.targets, strict=True))
        return right, len(examples) - right

    def model_outputs(self, inputs: np.ndarray) -> torch.Tensor:
        """Outputs (n, k) of the model as it stands, in evaluation mode and float32, on the CPU."""
        return outputs_of(self._learner, self._seen(inputs))

    def seconds_of_a_step(self, like: Examples) -> float:
        """Time of one training step without DP, on made-up examples of the shape and types of `like`."""
        inputs, targets = (
            torch.zeros((self.recipe.batch_size, *array.shape[1:]), dtype=torch.from_numpy(array[:0]).dtype)
            for array in (self._seen(like.inputs[:1]), like.targets)
        )
        self.model.train()
        with seeded(0, *self.hardware.devices):
            self._step.backward(inputs, targets)  # the first step also chooses kernels
            begun = time.perf_counter()
            self._step.backward(inputs, targets)
        self.model.zero_grad(set_to_none=True)
        return time.perf_counter() - begun

    def kept_bytes(self, examples: int) -> int:
        """Memory for what the fixed front made of so many examples, which is kept; 0 without a front."""
        return 0 if self._front is None else self._front.kept_bytes(examples)

    def _seen(self, inputs: np.ndarray) -> np.ndarray:
        """What the trained part of the model sees of them."""
        return inputs if self._front is None else self._front(inputs)

    def score_outputs(self, outputs: np.ndarray, examples: Examples) -> Evaluation:
        """The same figures for outputs that another engine computed."""
        return score(torch.from_numpy(outputs), examples, self._loss, self.metric)

    def _set_format(self, memory_format: torch.memory_format) -> None:
        self.model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def load(self, weights: np.ndarray) -> None:
        """Put the model, which clients share, where a fit begins: these weights, all else as at the start."""
        load_vector(self.model, self.layout, weights)
        with torch.no_grad():
            for name, tensor in self._rest.items():
                tensor.copy_(self._at_start[name])

    def _descend(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        round: int,
        batches: np.random.Generator,
        pruned: Pruned,
        correct: Corrected | None,
    ) -> float:
        optimizer = self.recipe.make_optimizer(self.model.parameters(), round)
        losses: list[tuple[int, torch.Tensor]] = []
        for chosen in _batches(len(inputs), self.recipe, batches):
            rows = torch.from_numpy(chosen)
            self.model.zero_grad(set_to_none=True)
            loss = self._step.backward(inputs[rows], targets[rows])
            zero_gradients(pruned)
            if self.recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
            if correct is not None:
                correct()
                zero_gradients(pruned)
            with without_compiler():
                optimizer.step()
            zero_weights(pruned)
            losses.append((len(chosen), loss))
        # Read at the end: reading one makes this process wait for the GPU.
        return sum(n * float(loss) for n, loss in losses) / max(sum(n for n, _ in losses), 1)


def outputs_of(model: nn.Module, inputs: np.ndarray) -> torch.Tensor:
    """Outputs (n, k) of any model in evaluation mode, computed where it is; on the CPU."""
    model.eval()
    device = device_of(model)
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(inputs[i : i + EVALUATION_BATCH]).to(device)).cpu()
            for i in range(0, len(inputs), EVALUATION_BATCH)
        ]
    return torch.cat(parts)


def score(outputs: torch.Tensor, examples: Examples, loss: Any, metric: Metric) -> Evaluation:
    targets = torch.from_numpy(examples.targets)
    return Evaluation(float(loss(outputs, targets).double().mean()), metric.of(outputs, targets), len(examples))


def _batches(examples: int, recipe: Recipe, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches without replacement, a new order in each epoch, for the recipe's number of epochs or steps."""
    size, steps = min(recipe.batch_size, examples), recipe.num_steps(examples)
    while steps > 0:
        order = random.permutation(examples)
        for start in range(0, examples, size):
            if steps == 0:
                return
            steps -= 1
            yield order[start : start + size]
