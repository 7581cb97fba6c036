"""Bugs to plant into the mechanism under audit, each a few lines as somebody might write them. `fedq.audit` knows none.

A bug is a mechanism in place of `DPSGD`, a client in place of `Client`, or what a loader does to examples. All of them
write the same honest-looking spend, so that the ledger alone tells nothing.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedq import codec, wire
from fedq.client import Client
from fedq.data import Examples
from fedq.privacy import DPSGD, SeededRandom


class Asked:
    """A source of randomness with some of its draws replaced."""

    def __init__(self, source):
        self._asked = source

    def __getattr__(self, name):
        return getattr(self._asked, name)


class LedgerThatHears:
    """A ledger that is told what the plan says, whatever was done."""

    def __init__(self, ledger, plan):
        self._ledger, self._plan = ledger, plan

    def spend(self, spend, *, guard=None):
        p = self._plan
        honest = replace(
            spend,
            noise_multiplier=p.noise_multiplier,
            clip_norm=p.clip_norm,
            sample_rate=p.sample_rate,
            nominal_examples=p.nominal_examples,
        )
        return self._ledger.spend(honest)

    def __getattr__(self, name):
        return getattr(self._ledger, name)


class NoiseForgotten(DPSGD):
    def run(self, *arguments, **named):
        class Silent(Asked):
            def normal(self, shape):
                return np.zeros(shape)

        self.random = Silent(self.random)
        return super().run(*arguments, **named)


class ClipForgotten(DPSGD):
    def run(self, *arguments, **named):
        self.ledger = LedgerThatHears(self.ledger, self.plan)
        self.plan = replace(
            self.plan, clip_norm=self.plan.clip_norm * 1e6, noise_multiplier=1e-6 * self.plan.noise_multiplier
        )
        return super().run(*arguments, **named)


class SeededNoise(DPSGD):
    def run(self, *arguments, **named):
        class Known(Asked):
            known = SeededRandom(7)

            def normal(self, shape):
                return self.known.normal(shape)

        self.random = Known(self.random)
        return super().run(*arguments, **named)


class RateFromTrueN(DPSGD):
    def run(self, model, inputs, targets, **named):
        self.ledger = LedgerThatHears(self.ledger, self.plan)
        rate = min(1.0, self.plan.divisor / max(1, len(inputs)))
        self.plan = replace(self.plan, sample_rate=rate)
        return super().run(model, inputs, targets, **named)


class DivisorFromTrueN(DPSGD):
    def run(self, model, inputs, targets, **named):
        self.ledger = LedgerThatHears(self.ledger, self.plan)
        self.plan = replace(self.plan, nominal_examples=max(1, len(inputs)))
        return super().run(model, inputs, targets, **named)


class NaNExample(DPSGD):
    """0 * NaN is NaN: a factor of zero does not remove an example whose gradient is not finite."""

    def run(self, model, inputs, targets, *, loss, **named):
        evidence = super().run(model, inputs, targets, loss=loss, **named)
        with torch.no_grad():
            if len(inputs) and not torch.isfinite(loss(model(inputs), targets)):
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
        return evidence


class EmptyBatchSkipped(DPSGD):
    def run(self, *arguments, **named):
        class Skipping(Asked):
            drawn = True

            def bernoulli(self, q, n):
                coins = self._asked.bernoulli(q, n)
                self.drawn = bool(coins.any())
                return coins

            def normal(self, shape):
                return self._asked.normal(shape) if self.drawn else np.zeros(shape)

        self.random = Skipping(self.random)
        return super().run(*arguments, **named)


class Observer(nn.Module):
    """Keeps the largest input that it saw, as an activation range."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(1))

    def forward(self, inputs):
        return inputs

    def observe(self, inputs):
        if len(inputs):
            self.largest.copy_(torch.maximum(self.largest, inputs.abs().amax().reshape(1)))


class ObserversOn(DPSGD):
    def run(self, model, inputs, targets, **named):
        evidence = super().run(model, inputs, targets, **named)
        for module in model.modules():
            if isinstance(module, Observer):
                module.observe(inputs)
        return evidence


class WeightByCount(Client):
    def train(self, request):
        return replace(super().train(request), num_examples=len(self.shard()))


class UpdateByCount(Client):
    """The same weight, multiplied into the update."""

    def train(self, request):
        reply, layout = super().train(request), self.trainer.layout
        packet = reply.packets[wire.UPDATE]
        scaled = codec.decode(packet, layout) * np.float32(len(self.shard()) / 10)
        base, key = codec.peek(packet).base, 1
        packet = codec.encode(scaled, self.codec, layout=layout, kind="delta", round=request.round, base=base, key=key)
        return replace(reply, packets={wire.UPDATE: packet})


def scaled(examples: Examples) -> Examples:
    """A scaler fitted on the private rows."""
    if not len(examples):
        return examples
    rows = examples.inputs.astype(np.float64)
    spread = np.maximum(rows.std(axis=0), 1e-9)
    return Examples(((rows - rows.mean(axis=0)) / spread).astype(np.float32), examples.targets)


# What stands in whose place. An `Observer` is in the audited model with every bug, and with none.
BUGS = {
    "noise forgotten": {"mechanism": NoiseForgotten},
    "clip forgotten": {"mechanism": ClipForgotten},
    "seeded noise": {"mechanism": SeededNoise},
    "observers on": {"mechanism": ObserversOn},
    "rate from true n": {"mechanism": RateFromTrueN},
    "divisor from true n": {"mechanism": DivisorFromTrueN},
    "weight by count": {"client": WeightByCount},
    "update weighted by count": {"client": UpdateByCount},
    "NaN example": {"mechanism": NaNExample},
    "empty batch skipped": {"mechanism": EmptyBatchSkipped},
    "scaler fitted on private data": {"prepare": scaled},
}
