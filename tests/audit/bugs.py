"""Bugs to plant into the mechanism under audit, each a few lines as somebody might write them. `fedq.audit` knows none.

A bug is a mechanism in place of `DPSGD`, a client in place of `Client`, a source in place of `SecureRandom`, a
calibration in place of `calibrate`, or what a loader does to examples. All of them write the same honest-looking spend,
so that the ledger alone tells nothing, and each is a bug of noise=discrete and of noise=gaussian.
"""

import secrets
import zlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from fedq import codec
from fedq.client import Client
from fedq.data import Examples
from fedq.flower import wire
from fedq.privacy import DPSGD, SecureRandom, SeededRandom, calibrate, dpsgd
from fedq.privacy.clipping import clip_and_round, clip_and_sum
from fedq.privacy.draws import KeystreamDraws, MadeUpWords
from fedq.privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from fedq.privacy.mechanisms.gaussian import Gaussian


class Asked:
    """A source of randomness with some of its draws replaced."""

    def __init__(self, source):
        self._asked = source

    def __getattr__(self, name):
        return getattr(self._asked, name)


class OtherNoise(Asked):
    """A source whose noise, discrete or not, is what `noise` makes of a standard deviation and a number of values."""

    def noise(self, sigma, count):
        raise NotImplementedError

    def normal(self, shape):
        return self.noise(1.0, int(np.prod(shape))).reshape(shape)

    def discrete_gaussian(self, sigma, count):
        return np.rint(self.noise(sigma, count)).astype(np.int64)

    def right(self, sigma, count):
        """The noise of the source itself."""
        return self._asked.normal(count) if sigma == 1 else self._asked.discrete_gaussian(sigma, count).astype(float)


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


def drawing_from(source):
    """A mechanism that draws from `source` (its own source -> another one)."""

    class Drawing(DPSGD):
        def run(self, *arguments, **named):
            self.random = source(self.random)
            return super().run(*arguments, **named)

    return Drawing


# --- noise -----------------------------------------------------------------------------------------------------------


class NoNoise(OtherNoise):
    def noise(self, sigma, count):
        return np.zeros(count)


class NoiseOfASeed(OtherNoise):
    def __init__(self, source):
        super().__init__(source)
        self._known = OtherNoise(SeededRandom(7))

    def noise(self, sigma, count):
        return self._known.right(sigma, count)


class NoiseOfOneStep(OtherNoise):
    kept = None

    def noise(self, sigma, count):
        self.kept = self.right(sigma, count) if self.kept is None else self.kept
        return self.kept


class NoiseOf32Bits(OtherNoise):
    """A seed of 32 bits from the right source, and numpy's generator."""

    def noise(self, sigma, count):
        return np.random.default_rng(self._asked.below(2**32)).normal(0, sigma, count)


class NoiseOf32BitsFromElsewhere(OtherNoise):
    def noise(self, sigma, count):
        return np.random.default_rng(secrets.randbits(32)).normal(0, sigma, count)


class NoiseOfTorch(OtherNoise):
    def __init__(self, source):
        super().__init__(source)
        self._torch = torch.Generator().manual_seed(secrets.randbits(32))

    def noise(self, sigma, count):
        return (sigma * torch.randn(count, generator=self._torch, dtype=torch.float64)).numpy()


class NoNoiseOnEmptyBatches(OtherNoise):
    drawn = True

    def bernoulli(self, q, n):
        coins = self._asked.bernoulli(q, n)
        self.drawn = bool(coins.any())
        return coins

    def noise(self, sigma, count):
        return self.right(sigma, count) if self.drawn else np.zeros(count)


class ConstantKey(SeededRandom):
    """A key that was meant to be drawn once for each client."""

    source, secret_bits = "os", 256

    def __init__(self, key=0, use=""):
        super().__init__(key, use)

    def stream(self, use):
        return ConstantKey(self._seed, f"{self._use}/{use}")


class OneKey(SeededRandom):
    """A fresh key for each client, which every use of it begins anew."""

    source, secret_bits = "os", 256

    def __init__(self, key=None):
        self.key = secrets.randbits(256) if key is None else key
        super().__init__(self.key)

    def stream(self, use):
        return OneKey(self.key)


# --- batches ---------------------------------------------------------------------------------------------------------


class CoinsOfTheCall(Asked):
    """In the source: coins from a generator seeded by how often it was asked."""

    calls = 0

    def bernoulli(self, q, n):
        self.calls += 1
        return np.random.default_rng(self.calls).random(n) < q


class CoinsOfTheRound(DPSGD):
    """In the mechanism: coins from a generator seeded by public numbers."""

    def run(self, *arguments, context, **named):
        class Public(Asked):
            rng = np.random.default_rng([context.round, *context.data.encode()])

            def bernoulli(self, q, n):
                self._asked.bernoulli(q, n)  # asked for, and not used
                return self.rng.random(n) < q

        self.random = Public(self.random)
        return super().run(*arguments, context=context, **named)


class CoinsOfTorch(Asked):
    def bernoulli(self, q, n):
        return (torch.rand(n) < q).numpy()


class CoinsOfTheExamples(DPSGD):
    """An example's own bytes decide in which batches it is: right on average, the same for everybody who knows it."""

    def run(self, model, inputs, targets, **named):
        class Hashed(Asked):
            step = 0

            def bernoulli(self, q, n):
                self._asked.bernoulli(q, n)
                self.step += 1
                seeds = [[self.step, zlib.crc32(row.numpy().tobytes())] for row in inputs]
                return np.array([np.random.default_rng(seed).random() < q for seed in seeds], dtype=bool)

        self.random = Hashed(self.random)
        return super().run(model, inputs, targets, **named)


class BatchesOfOneSize(Asked):
    """A secret shuffle, and as many of it as a batch has on average: no coins."""

    def bernoulli(self, q, n):
        chosen = np.argsort(self._asked.uniform(n)) < round(q * n)
        return chosen & self._asked.bernoulli(q, n).any() if q == 1 else chosen


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


# --- masks and views -------------------------------------------------------------------------------------------------


class MasksOfTorch(DPSGD):
    """torch's CPU generator for layers that draw: of its secret seed it keeps 32 bits; put back afterwards."""

    def run(self, *arguments, **named):
        class Seeded:
            answered = 1

            def __init__(self, source, examples=()):
                self.seed = 0 if isinstance(source, MadeUpWords) else source.below(2**53)

            @contextmanager
            def of(self, examples):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    yield
                self.seed += 1

        with patch.object(dpsgd, "KeystreamDraws", Seeded), unguarded():
            return super().run(*arguments, **named)


class MasksOf32Bits(DPSGD):
    """numpy's generator for them, seeded with 32 bits of the right source."""

    def run(self, *arguments, **named):
        class Expanded:
            def __init__(self, source):
                self.rng = np.random.default_rng(source.below(2**32))

            def words(self, count):
                return self.rng.integers(0, 2**64, count, dtype=np.uint64)

            def words_of(self, examples, each):
                return self.words(len(examples) * each).reshape(len(examples), each)

        def draws(source, examples=()):
            return KeystreamDraws(source if isinstance(source, MadeUpWords) else Expanded(source), examples)

        with patch.object(dpsgd, "KeystreamDraws", draws):
            return super().run(*arguments, **named)


class ViewsOfTorch(DPSGD):
    def run(self, *arguments, augment=None, **named):
        if augment is None:
            return super().run(*arguments, **named)
        torch_s = torch.Generator().manual_seed(self.random.below(2**32))

        def drawn(images, uniform):
            return augment(images, lambda shape: torch.rand(shape, generator=torch_s, dtype=torch.float64).numpy())

        return super().run(*arguments, augment=drawn, **named)


@contextmanager
def unguarded():
    """Without the guards of `DPSGD` that look for generators which a process shares."""
    with patch.object(dpsgd, "refuse_shared_generators", lambda work, *devices: work()):
        yield


# --- sums ------------------------------------------------------------------------------------------------------------


class ClipForgotten(DPSGD):
    """Gradients of up to a thousand clip norms have their share; the noise is that of one."""

    def run(self, *arguments, **named):
        def rounded(contributions, parameters, clip_norm, pruned, **options):
            return 1e3 * clip_and_round(contributions, parameters, 1e3 * clip_norm, pruned, **options)

        def summed(contributions, parameters, clip_norm, pruned, **options):
            return clip_and_sum(contributions, parameters, 1e3 * clip_norm, pruned, **options)

        with (
            patch.object(DiscreteGaussian, "clipped_sum", staticmethod(rounded)),
            patch.object(Gaussian, "clipped_sum", staticmethod(summed)),
        ):
            return super().run(*arguments, **named)


class Unpadded(DPSGD):
    """Batches as long as they come, and no probe: float32 kernels round a row by the batch it stands in."""

    def run(self, *arguments, **named):
        def as_they_come(drawn, size, *, padded):
            for start in range(0, len(drawn), size):
                yield drawn[start : start + size], len(drawn[start : start + size])

        with ExitStack() as stack:
            stack.enter_context(patch.object(dpsgd, "microbatches", as_they_come))
            stack.enter_context(patch.object(dpsgd, "is_batch_invariant", lambda *arguments, **named: True))
            return super().run(*arguments, **named)


class NaNExample(DPSGD):
    """0 * NaN is NaN: a factor of zero does not remove an example whose gradient is not finite."""

    def run(self, model, inputs, targets, *, loss, **named):
        evidence = super().run(model, inputs, targets, loss=loss, **named)
        with torch.no_grad():
            if len(inputs) and not torch.isfinite(loss(model.eval()(inputs), targets)):
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
        model.train()
        return evidence


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


# --- around the mechanism --------------------------------------------------------------------------------------------


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


def half_the_noise(**asked):
    return calibrate(**asked) / 2


@dataclass(frozen=True)
class Bug:
    """What stands in whose place. `model`: the kind of model that it needs; None: it is one with every model."""

    mechanism: type[DPSGD] = DPSGD
    client: type[Client] = Client
    make_random: Callable = SecureRandom
    calibrate: Callable = calibrate
    prepare: Callable[[Examples], Examples] = lambda examples: examples
    model: str | None = None
    subsampled: bool = False  # a bug only where not every example is in every batch


NONE = Bug()
OLD = {
    "noise forgotten": Bug(drawing_from(NoNoise)),
    "clip forgotten": Bug(ClipForgotten),
    "seeded noise": Bug(drawing_from(NoiseOfASeed)),
    "observers on": Bug(ObserversOn),
    "rate from true n": Bug(RateFromTrueN),
    "divisor from true n": Bug(DivisorFromTrueN),
    "weight by count": Bug(client=WeightByCount),
    "update weighted by count": Bug(client=UpdateByCount),
    "NaN example": Bug(NaNExample),
    "empty batch skipped": Bug(drawing_from(NoNoiseOnEmptyBatches)),
    "scaler fitted on private data": Bug(prepare=scaled),
}
NEW = {
    "coins of the call, in the source": Bug(make_random=lambda: CoinsOfTheCall(SecureRandom()), subsampled=True),
    "coins of the round, in the mechanism": Bug(CoinsOfTheRound, subsampled=True),
    "coins of torch's generator": Bug(drawing_from(CoinsOfTorch), subsampled=True),
    "coins of torch's generator, in the source": Bug(make_random=lambda: CoinsOfTorch(SecureRandom()), subsampled=True),
    "coins of the examples": Bug(CoinsOfTheExamples, subsampled=True),
    "shuffled batches of one size": Bug(drawing_from(BatchesOfOneSize), subsampled=True),
    "shuffled batches of one size, in the source": Bug(
        make_random=lambda: BatchesOfOneSize(SecureRandom()), subsampled=True
    ),
    "padding and probe removed": Bug(Unpadded),
    "half the noise from calibrate": Bug(calibrate=half_the_noise),
    "masks of torch's generator": Bug(MasksOfTorch, model="dropout"),
    "masks of 32 bits": Bug(MasksOf32Bits, model="dropout"),
    "views of torch's generator": Bug(ViewsOfTorch, model="views"),
    "noise of 32 bits": Bug(drawing_from(NoiseOf32Bits)),
    "noise of 32 bits from elsewhere": Bug(drawing_from(NoiseOf32BitsFromElsewhere)),
    "noise of torch's generator": Bug(drawing_from(NoiseOfTorch)),
    "noise of one step in all": Bug(drawing_from(NoiseOfOneStep)),
    "a constant key": Bug(make_random=ConstantKey),
    "one key for all uses": Bug(make_random=OneKey),
}
BUGS = OLD | NEW
