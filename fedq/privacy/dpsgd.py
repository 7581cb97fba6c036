"""DP-SGD on one client: writes the spend, draws Poisson batches, clips each example, adds the noise, steps.
Knows a model, tensors and a ledger; not rounds of a server, codecs, messages or where the data comes from.

What a step depends on besides the noised sum is public: rate, divisor, steps and noise come from `DPPlan`,
none from the number of examples (opacus#571, #819: there neighbours differ in noise scale and divisor).

Clipping, sum and noise are not left to Opacus' DPOptimizer: it draws from torch's generator in float32 (not a
cryptographic stream), gives a non-finite example a NaN share (NaN * 0), and spreads over hooks what a reader must see
in one place.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedq.core.compiler import without_compiler
from fedq.per_example import Recorder, averaged, recorded
from fedq.privacy import jit
from fedq.privacy.admission import budget_guard
from fedq.privacy.batch_invariance import aligned_products, is_batch_invariant, microbatch_size, microbatches
from fedq.privacy.clipping import UNITS, clip_and_round, clip_and_sum
from fedq.privacy.draws import GlobalGenerators, KeystreamDraws, MadeUpWords, refuse_shared_generators
from fedq.privacy.ledger import Ledger
from fedq.privacy.model_validation import (
    check_separate_examples,
    check_unchanged,
    device_of,
    fit_key,
    untrained_state,
)
from fedq.privacy.noise import RandomSource
from fedq.privacy.plan import DPPlan, SpendContext

_ONE_AT_A_TIME = (
    "this model's gradient of an example is rounded otherwise at another place of a batch, or a layer draws something "
    "that all examples share, so it is trained on one example at a time, which is slow; use layers of fedq's or "
    "torch's kinds, or noise=gaussian, whose epsilon is only that of the ideal mechanism"
)
MASKS, VIEWS, BATCHES, NOISE = "masks", "views", "batches", "noise"  # what is drawn in a private fit
Augment = Callable[[Tensor, Callable[[tuple[int, ...]], np.ndarray]], Tensor]
MAX_BATCH = 128  # examples whose gradients are held at once; more no longer fit a processor's caches


@dataclass(frozen=True)
class DPEvidence:
    """What was really done, for `is_private` to compare with what the ledger says."""

    noise_source: str
    steps_noised: int
    clip_norm: float
    noise_multiplier: float
    sample_rate: float
    spend_row_id: int
    noised_scalars: int  # values that got noise in every one of those steps
    mechanism: str = "gaussian"  # which noise, as a spend names it
    # Use -> bits of the secret that its random numbers come from; of a generator that the whole process shares: 0.
    secret_bits: Mapping[str, int] = field(default_factory=dict)


class DPSGD:
    """The mechanism, by one plan, over one client's ledger and one source of noise.

    `paid`: the row of the ledger that pays for the run, where it had to be written before the data were opened.
    """

    def __init__(self, plan: DPPlan, *, random: RandomSource, ledger: Ledger, paid: int | None = None) -> None:
        self.plan = plan
        self.random = random
        self.ledger = ledger
        self.paid = paid

    def run(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        context: SpendContext,
        max_batch: int = MAX_BATCH,
        pruned: Mapping[nn.Parameter, Tensor] | None = None,
        augment: Augment | None = None,
        views: int = 1,
        correct: Callable[[], None] | None = None,
    ) -> DPEvidence:
        """Train `model` in place by `plan.steps` noised steps; Declined or LedgerError come before any.

        `inputs`, `targets`: (n, ...), n may be 0; what is drawn of them moves to where the model is. `loss` must SUM
        over the batch. A batch is processed in parts of one public size, `max_batch` examples at most. `make_optimizer`
        gets the trainable parameters. `pruned`: parameter -> bool, True where it is 0.0 and stays so; public, as the
        weights that the server sends are. `augment` makes of inputs (n, ...) `views` of each, one example's after the
        other, by that example and chance alone: their mean gradient is the example's, and is clipped as one. Its second
        argument, shape (n, ...) -> float64 in [0, 1), is the chance. Layers that draw, as dropout does, and `augment`
        get random numbers from keystreams of their own, never from torch's generator. `correct` is called between the
        noise and each step: it may change the gradients by public or noised values alone.
        """
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: must be as many")
        if views < 1 or (augment is None and views > 1):
            raise ValueError(f"views={views}: must be 1 or more, and 1 without `augment`")
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: must be 1 or more")
        fit = _Fit(model, inputs, targets, loss, pruned or {}, augment, views, correct)
        check_separate_examples(model, loss, inputs, targets)
        if not fit.parameters:
            raise ValueError("the model has no trainable parameter: there is nothing for DP-SGD to train")
        with recorded(model) as recorder:
            optimizer = self._check(fit, recorder, make_optimizer, max_batch)
            row_id = self._charge(context)
            self._noised_steps(fit, recorder, optimizer)
        return DPEvidence(
            noise_source=self.random.source,
            steps_noised=fit.steps_noised,
            clip_norm=self.plan.clip_norm,
            noise_multiplier=self.plan.noise_multiplier,
            sample_rate=self.plan.sample_rate,
            mechanism=self.plan.mechanism_name,
            spend_row_id=row_id,
            noised_scalars=sum(p.numel() for p in fit.parameters),
            secret_bits=fit.secret_bits,
        )

    def _check(
        self,
        fit: "_Fit",
        recorder: Recorder,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        max_batch: int,
    ) -> torch.optim.Optimizer:
        """Refuse what cannot be trained under DP, on made-up batches; nothing is spent yet. The optimizer."""
        plan = self.plan
        fit.untrained = untrained_state(fit.model)
        optimizer = make_optimizer(fit.parameters)
        key = fit_key(fit.model, fit.loss, fit.inputs, fit.targets)
        drawing = _drawing.setdefault(fit.model, {})
        if key not in drawing:
            drawing[key] = _made_up_passes(recorder, fit.loss, fit.inputs, fit.targets, fit.device)
        fit.layers_draw = drawing[key]
        fit.at_once = microbatch_size(plan.divisor, plan.sample_rate, max(1, max_batch // fit.views))
        if not is_batch_invariant(
            recorder,
            fit.loss,
            fit.inputs,
            fit.targets,
            size=fit.at_once,
            clip_norm=plan.clip_norm,
            pruned=fit.pruned,
            views=fit.views,
            draws_only=plan.noise != "discrete",
        ):
            warnings.warn(_ONE_AT_A_TIME, stacklevel=3)
            fit.at_once = 1
        scalars = sum(p.numel() for p in fit.parameters)
        fit.kernels = jit.kernels(plan.steps * math.ceil(plan.divisor) * fit.views * scalars)
        return optimizer

    def _charge(self, context: SpendContext) -> int:
        """Put the spend on disk, before the first noised step: a crash from here on has paid for more than it got."""
        if self.paid is not None:
            return self.paid
        spend = self.plan.spend(context, noise_source=self.random.source)
        return self.ledger.spend(spend, guard=budget_guard(self.plan))

    def _noised_steps(self, fit: "_Fit", recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
        """`plan.steps` steps, each on its own Poisson batch. An empty batch too is noised: skipping it would tell."""
        plan = self.plan
        shared = GlobalGenerators(fit.device)
        masks, of_views = self.random.stream(MASKS), self.random.stream(VIEWS)
        draws = KeystreamDraws(masks)
        for _ in range(plan.steps):
            drawn = np.flatnonzero(self.random.bernoulli(plan.sample_rate, len(fit.inputs)))
            total = self._clipped_sum(fit, recorder, drawn, draws, of_views)
            noised = _noised(total, plan, self.random)
            fit.steps_noised += 1
            _set_gradients(fit.parameters, noised / plan.divisor)
            if fit.correct is not None:  # of public or noised values: post-processing
                fit.correct()
            # Noise is on every value, also where nothing is trained; what is dropped of it is post-processing.
            for parameter, zeros in fit.pruned.items():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(zeros, 0.0)
            with without_compiler():
                optimizer.step()
            for parameter in fit.parameters:
                parameter.grad = None
            with torch.no_grad():
                for parameter, zeros in fit.pruned.items():
                    parameter.masked_fill_(zeros, 0.0)
        check_unchanged(fit.model, fit.untrained)
        if used := shared.used():
            raise ValueError(
                f"the model drew from {used[0]}'s own generator, whose state is no secret of this client's"
            )
        fit.secret_bits = dict.fromkeys((BATCHES, NOISE), self.random.secret_bits)
        fit.secret_bits |= {MASKS: masks.secret_bits} if fit.layers_draw else {}
        fit.secret_bits |= {} if fit.augment is None else {VIEWS: of_views.secret_bits}

    def _clipped_sum(
        self, fit: "_Fit", recorder: Recorder, drawn: np.ndarray, draws: KeystreamDraws, of_views: RandomSource
    ) -> Tensor:
        """The sum of the clipped gradients of the examples `drawn`, float64, shape (trained scalars,)."""
        whole = self.plan.noise == "discrete"  # sums of integers; sums of floats depend on the whole batch anyhow
        bounded_sum = clip_and_round if whole else clip_and_sum
        total = torch.zeros(sum(p.numel() for p in fit.parameters), dtype=torch.float64)
        for part, count in microbatches(drawn, fit.at_once, padded=whole):
            chunk = torch.from_numpy(part)
            seen = fit.inputs[chunk]
            if fit.augment is not None:
                seen = fit.augment(seen, _uniforms(of_views, part))
            wanted = fit.targets[chunk].repeat_interleave(fit.views, 0).to(fit.device)
            with aligned_products(), draws.of(part) if fit.layers_draw else nullcontext():
                fit.loss(fit.model(seen.to(fit.device)), wanted).backward()  # type: ignore[no-untyped-call]
            # Averaged before the clip: however many views, an example has one bounded share.
            shares = averaged(recorder.take(len(seen)), fit.views)
            total += bounded_sum(
                shares, fit.parameters, self.plan.clip_norm, fit.pruned, count=count, kernels=fit.kernels
            )
        return total


# Model -> key of a fit -> whether layers draw: a property of the model's code, so it is found out once.
_drawing: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


@dataclass
class _Fit:
    """One fit: what it was given, and what its checks found."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    pruned: Mapping[nn.Parameter, Tensor]
    augment: Augment | None
    views: int
    correct: Callable[[], None] | None
    untrained: dict[str, Tensor] = field(default_factory=dict)  # what a fit must leave as it is
    at_once: int = 1  # examples whose gradients are held at once: public
    layers_draw: bool = False
    kernels: ModuleType | None = None  # compiled clipping, for the whole fit or not at all
    steps_noised: int = 0
    secret_bits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = device_of(self.model)


def _uniforms(source: RandomSource, examples: np.ndarray) -> Callable[[tuple[int, ...]], np.ndarray]:
    """float64 in [0, 1) of a shape (examples, ...), drawn for each example."""

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        words = source.words_of(examples, math.prod(shape) // len(examples))
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)

    return drawn


def _made_up_passes(
    recorder: Recorder,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    device: torch.device,
) -> bool:
    """Whether layers of the model draw; ValueError for what cannot be trained here, found on made-up batches.

    That is what draws from a generator that others share; and where what is taken for the examples of a layer are not
    the batch's. Axis 0 of each layer's input is. Where a model moves tokens there, or sequences first, an example is
    cut into many "examples", each with a bound of its own, and its whole share has none.
    """
    draws = KeystreamDraws(MadeUpWords(0))

    def passes() -> None:
        for count in (2, 3):  # two sizes, since an example may happen to have as many parts as the batch examples
            x = torch.zeros((count, *inputs.shape[1:]), dtype=inputs.dtype, device=device)
            y = torch.zeros((count, *targets.shape[1:]), dtype=targets.dtype, device=device)
            with draws.of(range(count)):
                loss(recorder.model(x), y).backward()  # type: ignore[no-untyped-call]
            recorder.take(count)

    refuse_shared_generators(passes, device)
    return draws.answered > 0


def _noised(total: Tensor, plan: DPPlan, random: RandomSource) -> Tensor:
    """float64: the sum and its noise, in the unit of the gradients."""
    if plan.noise == "gaussian":
        return total + plan.noise_std * torch.from_numpy(random.normal(total.numel()))
    # Whole numbers on a public grid, exact in float64: no bit of the result depends on anything but their sum.
    noise = torch.from_numpy(random.discrete_gaussian(plan.grid_sigma(UNITS), total.numel())).double()
    return (total + noise) * (plan.clip_norm / UNITS)


def _set_gradients(parameters: list[nn.Parameter], gradient: Tensor) -> None:
    offset = 0
    for parameter in parameters:
        part = gradient[offset : offset + parameter.numel()]
        parameter.grad = part.view_as(parameter).to(parameter.dtype).to(parameter.device)  # MPS has no float64
        offset += parameter.numel()
