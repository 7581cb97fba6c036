"""Differential privacy at the client level, by a server that they trust: clip, sum, noise, one spend a round.
Knows vectors and public numbers; not packets, messages, models or who the clients are.

Neighbours (zero-out): two equal runs, except that in one of them every update of one client counts as zero.
The sum of a round then moves by at most the clip norm C, and the divisor is the public size of a cohort, whatever
came back. Each round adds a Gaussian of std z C to the sum (McMahan et al. 2018, arXiv:1710.06963). Updates are summed
in whole steps of 2^-32, and the noise is a whole number of them too (`noise=discrete`): no floats meet.

With `quantile` the clip norm follows that quantile of the updates' norms (Andrew et al. 2021, arXiv:1905.03871): how
many norms lay within it is noised too, and the noise on the sum grows so that both together cost what z says.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedq.core.choices import ACCOUNTANTS
from fedq.core.durable import append_to_private
from fedq.privacy.accounting import Accountant, AnyMechanism, Mechanism, epsilon
from fedq.privacy.chain import Row
from fedq.privacy.client_level_account import charged, require_budget
from fedq.privacy.client_level_noise import COUNT_GRID, GRID, LARGEST_STD, LEAST_STD, drawn_std, noised
from fedq.privacy.ledger import Ledger, check_same_data
from fedq.privacy.noise import RandomSource
from fedq.privacy.plan import MECHANISMS, Noise
from fedq.privacy.spend import GAUSSIAN, Spend

Sampling = Literal["cyclic", "poisson"]
UNIT: Final = "client"
ADJACENCY: Final = "zero-out-one"
LEAST_CLIP, LARGEST_CLIP = 1e-4, 1e3
# eta_C of Andrew et al.: how far the clip norm moves in a round, as an exponent.
_CLIP_RATE: Final = 0.2
# Round-off of the norm, of the scaling and of float32 is below 2^-22 of it.
_MARGIN: Final = 1 - 2.0**-20
_CHUNK: Final = 1 << 16
_FARTHEST: Final = 50.0  # e^50: beyond all that lies between the least and the largest clip norm
# Of clients times clip norm: sums of 2^62 steps leave int64 the room that noise needs.
_LARGEST_SUM: Final = 2.0**30


@dataclass(frozen=True)
class ClientLevelPlan:
    """What the server does in every round: public numbers, fixed before the first."""

    noise_multiplier: float  # z: what a round costs; std of the noise on the sum over the clip norm, if that is fixed
    clip_norm: float  # largest L2 norm of a client's update; with `quantile` that of the first round
    cohort: int  # public number of clients in a round: divides the sum
    clients: int
    charges: int  # rounds that count against one client: under deal the most it takes part in, under poisson all
    sampling: Sampling = "cyclic"
    quantile: float | None = None  # of the norms, which the clip norm follows; None: it is fixed
    target_epsilon: float = math.inf  # of all that a client ever spends by the server's ledger
    delta: float = 1e-5
    accountant: Accountant = "prv"
    noise: Noise = "discrete"

    def __post_init__(self) -> None:
        Mechanism(self.noise_multiplier, 1.0, self.charges)  # checks both
        if not LEAST_CLIP <= self.clip_norm <= LARGEST_CLIP:
            raise ValueError(f"clip_norm={self.clip_norm}: must be in [{LEAST_CLIP:g}, {LARGEST_CLIP:g}], e.g. 1")
        if not 1 <= self.cohort <= self.clients:
            raise ValueError(f"cohort={self.cohort} of {self.clients} clients: must be 1 to all of them")
        if self.sampling not in ("cyclic", "poisson"):
            raise ValueError(f"sampling={self.sampling!r}: must be deal or poisson")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"quantile={self.quantile}: must be between 0 and 1, e.g. 0.5")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must lie between 0 and 1, e.g. 1e-5")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(f"accountant={self.accountant!r}: must be one of {', '.join(ACCOUNTANTS)}")
        if self.noise not in MECHANISMS:
            raise ValueError(f"noise={self.noise!r}: must be one of {', '.join(MECHANISMS)}")
        if self.noise == "discrete" and not self.least_clip <= self.clip_norm <= self.largest_clip:
            raise ValueError(
                f"clip_norm={self.clip_norm} at noise_multiplier={self.noise_multiplier}: the grid of noise=discrete "
                f"holds clip norms of {self.least_clip:.3g} to {self.largest_clip:.3g} there; use noise=gaussian"
            )

    @property
    def least_clip(self) -> float:
        """The shortest clip norm whose noise the grid resolves."""
        return LEAST_CLIP if self.noise == "gaussian" else max(LEAST_CLIP, LEAST_STD / self.sum_multiplier)

    @property
    def largest_clip(self) -> float:
        """The longest clip norm whose noise, and whose sum over all clients, the grid holds."""
        if self.noise == "gaussian":
            return LARGEST_CLIP
        return min(LARGEST_CLIP, LARGEST_STD / self.sum_multiplier, _LARGEST_SUM / self.clients)

    @property
    def sample_rate(self) -> float:
        """Chance of a client to be in a round, where that is secret; 1: nothing is gained by the sampling."""
        return self.cohort / self.clients if self.sampling == "poisson" else 1.0

    @property
    def count_std(self) -> float | None:
        """Std of the noise on the number of norms within the clip (sigma_b); None: nothing is counted.

        A twentieth of the cohort, as in the paper, and at least z: then the sum gets at most 16 % more noise.
        """
        return None if self.quantile is None else max(self.cohort / 20, self.noise_multiplier)

    @property
    def sum_multiplier(self) -> float:
        """Std of the noise on the sum over the clip norm (z_delta); z itself where nothing is counted."""
        return sum_multiplier(self.noise_multiplier, self.count_std)

    def mechanism(self, rounds: int) -> Mechanism:
        """What `rounds` rounds cost a client that counted in all of them."""
        return Mechanism(self.noise_multiplier, self.sample_rate, rounds)

    def epsilon(self, rounds: int, *, before: Sequence[AnyMechanism] = ()) -> float:
        """Upper bound on what they cost at `delta`, with what was spent before."""
        return epsilon([*before, self.mechanism(rounds)], self.delta, accountant=self.accountant)

    def require_budget(self, before: Sequence[AnyMechanism]) -> None:
        """Declined("budget") where not all of the run fits into what other runs have left."""
        self._require(
            [*before, self.mechanism(self.charges)], f"the {self.charges} rounds that count against one client"
        )

    def _require(self, spent: Sequence[AnyMechanism], what: str) -> None:
        require_budget(
            spent, target_epsilon=self.target_epsilon, delta=self.delta, accountant=self.accountant, what=what
        )

    def require_round(self, before: Sequence[Spend], round: Spend) -> None:
        """Declined("budget") where this round does not fit, after those `before` of all runs."""
        again = sum((s.run, s.round) == (round.run, round.round) for s in before)  # as the ledger will number it
        spends = [*before, replace(round, attempt=round.attempt + again)]
        self._require(charged(spends, clients=self.clients), f"round {round.round}")

    @property
    def mechanism_name(self) -> str:
        """As spends name it."""
        return MECHANISMS[self.noise]


def sum_multiplier(noise_multiplier: float, count_std: float | None) -> float:
    """z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2; NaN where the count alone costs more than z allows.

    A client moves the count, of indicators less a half, by at most a half, so its multiplier is 2 sigma_b. Two
    Gaussians of multipliers a and b on one client cost what one of (a^-2 + b^-2)^-1/2 does.

    >>> round(sum_multiplier(1.0, 1.0), 4)
    1.1547
    """
    if count_std is None:
        return noise_multiplier
    left = noise_multiplier**-2 - (2 * count_std) ** -2
    return left**-0.5 if left > 0 else math.nan


def clipped(update: NDArray[np.float32], clip_norm: float) -> tuple[NDArray[np.float32], bool]:
    """The update, scaled down to the clip norm where it is longer; and whether it was within.

    A hair below: what comes out, rounded to the accumulator's grid of 2^-32, is no longer than `clip_norm`.
    """
    norm = l2_norm(update)
    aim = clip_norm * _MARGIN - math.sqrt(update.size) * 2.0**-33
    if norm <= aim:
        return update, True
    scaled = np.empty_like(update)
    with np.errstate(under="ignore"):
        np.multiply(update, aim / norm, out=scaled, dtype=np.float64, casting="same_kind")
    return scaled, norm <= clip_norm


def l2_norm(vector: NDArray[np.float32]) -> float:
    """In float64, where the square of no float32 overflows."""
    squares = 0.0
    for start in range(0, vector.size, _CHUNK):
        part = vector[start : start + _CHUNK].astype(np.float64)
        squares += float(np.sum(part * part))
    return math.sqrt(squares)


@dataclass(frozen=True)
class ClientLevelEvidence:
    """What was really done in a round, for `is_client_private` to compare with what the ledger says."""

    round: int
    noise_source: str
    noise_multiplier: float
    sum_multiplier: float  # std of the noise on the sum, over the clip norm
    count_std: float | None
    clip_norm: float  # under which the updates were folded
    noised_scalars: int
    divisor: int
    spend_row_id: int
    mechanism: str = GAUSSIAN  # which noise, as a spend names it


class ClientLevelMechanism:
    """The server's side of one run: the clip norm of the round, the ledger, the noise."""

    def __init__(
        self, plan: ClientLevelPlan, *, ledger: Path, evidence: Path, random: RandomSource, data: str, run: str
    ) -> None:
        self.plan, self.clip_norm = plan, plan.clip_norm
        self._ledger, self._evidence, self._random = Ledger(ledger), evidence, random
        self._data, self._run = data, run

    @property
    def ledger(self) -> Path:
        """The file that all its spends are in."""
        return self._ledger.path

    def admit(self) -> list[AnyMechanism]:
        """What one client may have spent in earlier runs; Declined where this run does not fit.

        LedgerError where the ledger cannot be read or is of other data.
        """
        rows = self._ledger.rows()
        check_same_data(self._ledger.path, rows, self._data)
        before = charged((row.spend for row in rows), clients=self.plan.clients)
        self.plan.require_budget(before)
        return before

    def release(
        self,
        steps: NDArray[np.int64],
        *,
        grid: float,
        round: int,
        clip_norm: float | None,
        counted: int,
        within: int,
    ) -> NDArray[np.float32]:
        """The noised mean of a round, float32 of the shape of `steps`, which counts the sum in units of 1 / `grid`.

        `clip_norm`: that under which the updates were folded, None for a round without any; `counted`: how many there
        were; `within`: how many of them were no longer than that. LedgerError, or Declined where the budget is spent,
        before anything is drawn.
        """
        plan = self.plan
        if counted and clip_norm != self.clip_norm:
            raise RuntimeError(f"round {round}: updates clipped to {clip_norm}, the noise is for {self.clip_norm}")
        if grid != GRID:
            raise RuntimeError(f"sums in steps of 1 / {grid}, the noise is for steps of 1 / {GRID}")
        spend = self._spend(round)

        def guard(before: Sequence[Row]) -> None:  # another run may have spent from the same ledger meanwhile
            plan.require_round([row.spend for row in before], spend)

        row_id = self._ledger.spend(spend, guard=guard)  # on disk before anything that it buys is drawn
        std = plan.sum_multiplier * self.clip_norm
        mean = np.empty(steps.size, np.float32)
        covered = 0
        for start in range(0, steps.size, _CHUNK):
            part = noised(steps[start : start + _CHUNK], grid=grid, std=std, noise=plan.noise, random=self._random)
            mean[start : start + _CHUNK] = part / plan.cohort
            covered += part.size
        self._note(
            ClientLevelEvidence(
                round,
                self._random.source,
                plan.noise_multiplier,
                drawn_std(std, grid=grid, noise=plan.noise) / self.clip_norm,
                plan.count_std,
                self.clip_norm,
                covered,
                plan.cohort,
                row_id,
                plan.mechanism_name,
            )
        )
        self.clip_norm = self._next_clip(counted, within)
        return mean

    def _next_clip(self, counted: int, within: int) -> float:
        """C exp(-eta (b - quantile)), where b is the noised share of norms within C."""
        plan = self.plan
        if plan.quantile is None or plan.count_std is None:
            return self.clip_norm
        # Less a half each: a client that sends nothing counts as zero, and one that does moves this by a half.
        halves = np.array([2 * within - counted], np.int64) * int(COUNT_GRID / 2)
        (above,) = noised(halves, grid=COUNT_GRID, std=plan.count_std, noise=plan.noise, random=self._random)
        share = float(above) / plan.cohort + 0.5
        moved = -_CLIP_RATE * (share - plan.quantile)
        # Bounded before exp, which loud noise on the count of a small cohort would make overflow.
        return min(
            max(self.clip_norm * math.exp(min(max(moved, -_FARTHEST), _FARTHEST)), plan.least_clip), plan.largest_clip
        )

    def _spend(self, round: int) -> Spend:
        plan = self.plan
        return Spend(
            noise_multiplier=plan.noise_multiplier,
            clip_norm=self.clip_norm,
            sample_rate=plan.sample_rate,
            steps=1,
            delta=plan.delta,
            nominal_examples=plan.clients if plan.sampling == "poisson" else plan.cohort,
            noise_source=self._random.source,
            data=self._data,
            run=self._run,
            round=round,
            unit=UNIT,
            adjacency=ADJACENCY,
            mechanism=plan.mechanism_name,
        )

    def _note(self, evidence: ClientLevelEvidence) -> None:
        with append_to_private(self._evidence) as file:
            file.write(json.dumps(asdict(evidence)) + "\n")
            file.flush()
            os.fsync(file.fileno())
