"""DP-SGD on one client: writes the spend, draws Poisson batches, clips each example, adds the noise, steps.
Knows a model, tensors and a ledger; not rounds of a server, codecs, messages or where the data comes from.

What a step depends on besides the noised sum is public: rate, divisor, steps and noise come from `DPPlan`,
none from the number of examples (opacus#571, #819: there neighbours differ in noise scale and divisor).

Per-example gradients come from Opacus' GradSampleModule. Clipping, sum and noise are written out here and not
left to DPOptimizer: it draws from torch's generator in float32 (not a cryptographic stream), gives a
non-finite example a NaN share (NaN * 0), and spreads over hooks what a reader must see in one place.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedq.compiler import without_compiler
from fedq.privacy.admission import budget_guard
from fedq.privacy.ledger import Ledger
from fedq.privacy.noise import RandomSource
from fedq.privacy.plan import DPPlan, SpendContext
from fedq.privacy.spend import Spend
from fedq.privacy.suitable import (
    check_loss_sums,
    check_unchanged,
    device_of,
    refuse_channels_last,
    refuse_cross_example_layers,
    refuse_mixing,
    untrained_state,
)

# Norms are float32: aim a hair under the bound, so that their round-off (about 1e-7 relative) cannot exceed
# it.
_MARGIN = 1 - 2.0**-18

MAX_BATCH = 256  # examples whose gradients are held at once


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


class DPSGD:
    """The mechanism, by one plan, over one client's ledger and one source of noise."""

    def __init__(self, plan: DPPlan, *, random: RandomSource, ledger: Ledger) -> None:
        self.plan = plan
        self.random = random
        self.ledger = ledger

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
    ) -> DPEvidence:
        """Train `model` in place by `plan.steps` noised steps; Declined or LedgerError come before any.

        `inputs`, `targets`: (n, ...), n may be 0; what is drawn of them moves to where the model is. `loss` must SUM
        over the batch. `max_batch` bounds memory only: a larger batch is processed in parts. `make_optimizer` gets the
        trainable parameters. `pruned`: parameter -> bool, True where it is 0.0 and stays so; public, as the weights
        that the server sends are.
        """
        plan, pruned = self.plan, pruned or {}
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: must be as many")
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: must be 1 or more")
        refuse_cross_example_layers(model)
        refuse_channels_last(model)
        refuse_mixing(model, tuple(inputs.shape[1:]), inputs.dtype)
        check_loss_sums(model, loss, inputs, targets)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the model has no trainable parameter: there is nothing for DP-SGD to train")
        untrained = untrained_state(model)
        optimizer = make_optimizer(parameters)
        device = device_of(model)

        with _per_example_gradients(model) as forward:
            _refuse_other_rows(forward, parameters, loss, inputs, targets, device)
            # All that can refuse has had its say. The spend is on disk before the first noised step: a crash
            # from here on has paid for more than it got.
            row_id = self.ledger.spend(_spend(plan, context, self.random), guard=budget_guard(plan))
            steps_noised = 0
            for _ in range(plan.steps):
                drawn = np.flatnonzero(self.random.bernoulli(plan.sample_rate, len(inputs)))
                total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
                for start in range(0, len(drawn), max_batch):
                    chunk = torch.from_numpy(drawn[start : start + max_batch])
                    outputs = forward(inputs[chunk].to(device))
                    loss(outputs, targets[chunk].to(device)).backward()  # type: ignore[no-untyped-call]
                    total += clip_and_sum(parameters, plan.clip_norm, pruned, examples=len(chunk))
                # Every step is noised, that of an empty batch too: skipping one would tell that it was empty.
                noised = total + plan.noise_std * torch.from_numpy(self.random.normal(total.numel()))
                steps_noised += 1
                _set_gradients(parameters, noised / plan.divisor)
                # Noise is on every value, also where nothing is trained; what is dropped of it is post-processing.
                for parameter, zeros in pruned.items():
                    if parameter.grad is not None:
                        parameter.grad.masked_fill_(zeros, 0.0)
                with without_compiler():
                    optimizer.step()
                with torch.no_grad():
                    for parameter, zeros in pruned.items():
                        parameter.masked_fill_(zeros, 0.0)
        check_unchanged(model, untrained)
        return DPEvidence(
            noise_source=self.random.source,
            steps_noised=steps_noised,
            clip_norm=plan.clip_norm,
            noise_multiplier=plan.noise_multiplier,
            sample_rate=plan.sample_rate,
            spend_row_id=row_id,
            noised_scalars=sum(p.numel() for p in parameters),
        )


@contextmanager
def _per_example_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Opacus' hooks for a while; afterwards no trace of them: the next client may use the same module."""
    from opacus import GradSampleModule
    from opacus.grad_sample.gsm_base import OPACUS_PARAM_MONKEYPATCH_ATTRS

    was_training = {module: module.training for module in model.modules()}
    try:
        try:
            # strict=False: Opacus refuses any buffer. Constant ones are harmless; check_unchanged sees to it.
            wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
        except NotImplementedError as error:
            raise ValueError(
                f"Opacus has no per-example gradients for this model: {error}; keep buffers in layers of their own"
            ) from error
        wrapped.train()
        with warnings.catch_warnings():
            # The first layer's input needs no gradient; Opacus' hooks ask for its output's only.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            yield wrapped
    finally:
        # Not to_standard_module(): there is no wrapper if its constructor failed, and after an error between
        # forward and backward pass it does not remove everything.
        for handle in model.__dict__.pop("autograd_grad_sample_hooks", ()):
            handle.remove()
        for parameter in model.parameters():
            parameter.grad = None
            for leftover in OPACUS_PARAM_MONKEYPATCH_ATTRS:
                parameter.__dict__.pop(leftover, None)
        for module, training in was_training.items():
            for leftover in ("activations", "max_batch_len", "ft_compute_sample_grad"):
                module.__dict__.pop(leftover, None)
            module.training = training


def _spend(plan: DPPlan, context: SpendContext, random: RandomSource) -> Spend:
    return Spend(
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        delta=plan.delta,
        nominal_examples=plan.nominal_examples,
        noise_source=random.source,
        data=context.data,
        run=context.run,
        round=context.round,
        attempt=context.attempt,
        bundle=context.bundle,
    )


def _refuse_other_rows(
    forward: nn.Module,
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    device: torch.device,
) -> None:
    """ValueError where what Opacus takes for the examples of a layer are not the batch's, on made-up batches.

    It takes axis 0 of each layer's input for them. Where a model moves tokens there, or sequences first, an example is
    cut into many "examples", each with a bound of its own, and its whole share has none.
    """
    for count in (2, 3):  # two sizes, since an example may happen to have as many parts as the batch examples
        x = torch.zeros((count, *inputs.shape[1:]), dtype=inputs.dtype, device=device)
        y = torch.zeros((count, *targets.shape[1:]), dtype=targets.dtype, device=device)
        with torch.random.fork_rng(devices=[]):
            loss(forward(x), y).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            samples: Tensor | None = parameter.grad_sample  # type: ignore[attr-defined]
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None
            if samples is not None:
                _check_rows(samples, count)


def _check_rows(samples: Tensor, examples: int) -> None:
    if len(samples) != examples:
        raise ValueError(
            f"a layer has per-example gradients of {len(samples)} examples in a batch of {examples}: its input must "
            "have the examples on axis 0, so that the bound is of each whole example; keep the batch axis first "
            "(batch_first=True), or use privacy=off"
        )


def clip_and_sum(
    parameters: list[nn.Parameter],
    clip_norm: float,
    pruned: Mapping[nn.Parameter, Tensor] | None = None,
    *,
    examples: int | None = None,
) -> Tensor:
    """Clip each example's gradient (all parameters together) and sum: flat float64. Uses up `.grad_sample`.

    An example whose gradient, or its norm, is not finite contributes zero. Pruned values take no part in the norm. The
    sum is on the CPU, where the noise is drawn, whatever device the gradients are on.
    """
    flat: list[Tensor | None] = []
    squares: Tensor | None = None
    for parameter in parameters:
        samples: Tensor | None = parameter.grad_sample  # type: ignore[attr-defined]  # Opacus puts it there
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None  # the bare sum of this chunk: must never reach an optimizer
        if samples is None:  # not used in this forward pass
            flat.append(None)
            continue
        if examples is not None:
            _check_rows(samples, examples)
        samples = samples.flatten(start_dim=1)
        if pruned and parameter in pruned:
            samples.masked_fill_(pruned[parameter].flatten(), 0.0)
        flat.append(samples)
        square = torch.linalg.vector_norm(samples, dim=1).square()
        squares = square if squares is None else squares + square
    if squares is None:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    norms = squares.sqrt()
    factors = torch.clamp(clip_norm * _MARGIN / norms, max=1.0)  # norm 0: inf, clamped to 1
    factors = torch.where(torch.isfinite(norms), factors, 0.0)
    parts = []
    for parameter, samples in zip(parameters, flat, strict=True):
        if samples is None:
            parts.append(torch.zeros(parameter.numel(), dtype=torch.float64))
        else:
            # 0 * NaN is NaN, so a factor of zero alone does not remove a non-finite example.
            samples = samples.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            parts.append(_weighted_sum(factors, samples).cpu().double())
    return torch.cat(parts)


def _weighted_sum(factors: Tensor, samples: Tensor) -> Tensor:
    if samples.device.type == "cpu":
        return factors @ samples
    # A GPU may be told to multiply matrices in TF32, whose 10 bits would let an example exceed its bound.
    return samples.mul_(factors.unsqueeze(1)).sum(0)


def _set_gradients(parameters: list[nn.Parameter], gradient: Tensor) -> None:
    offset = 0
    for parameter in parameters:
        part = gradient[offset : offset + parameter.numel()]
        parameter.grad = part.view_as(parameter).to(parameter.dtype).to(parameter.device)  # MPS has no float64
        offset += parameter.numel()
