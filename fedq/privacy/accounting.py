"""Accounting and calibration: the epsilon of a series of noised steps, and the noise that a budget needs.
Knows noise multipliers, rates and steps; not models, data or files.

Every step is one Poisson-subsampled Gaussian mechanism; neighbours differ by one example added or removed.
Two accountants, both from Opacus, both upper bounds:

- `prv` (the default): numerical composition of privacy loss random variables (Gopi et al. 2021,
  arXiv:2106.02848). At ten settings `rdp` reported 5 to 26 % more. The reported value is the upper end of
  its error interval, never the estimate. Opacus composes the direction "remove" only. A test against
  dp-accounting, which composes both, checks that "add" is not worse (tests/privacy/test_accounting.py).
- `rdp`: Renyi accounting (Mironov et al. 2019, arXiv:1908.10530), conversion of Balle et al. 2020.

For more than `MOST_EXACT` different mechanisms (pairs of noise and rate) either accountant takes many seconds,
and PRV about 10 MB for each. Both then use the Renyi bound at integer orders over all mechanisms (`renyi`).

Opacus' PRV takes 0.1 to 0.7 s a call, and a run needs one call a round for every participation count. So the
discretised loss is cached for the step count rounded up to a power of two. A mesh and a domain that are safe
for n steps are safe for fewer: the mesh (error / sqrt(n)) is only finer, and the domain (a tail bound that
grows in n) only wider, than fewer steps need. Each further count costs one power in Fourier space, 10 ms.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np

from fedq.core.choices import ACCOUNTANTS
from fedq.privacy.renyi import renyi_epsilon

Accountant = Literal["prv", "rdp"]
MOST_EXACT: Final = 8  # largest number of different mechanisms that the named accountant composes

# Opacus' own orders, and larger ones for small epsilon (integer orders cost little).
_ORDERS = (
    tuple(1 + tenths / 10 for tenths in range(1, 100))
    + tuple(map(float, range(12, 64)))
    + (80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0)
)
# Any orders give a valid bound. Fractional ones are slow, so there are few here, where the bound only sizes
# PRV's domain or replaces its result.
_TAIL_ORDERS = (1.1, 1.25, 1.5, 1.75, 2.5, *map(float, range(2, 33)), 48.0, 64.0, 128.0, 256.0)
# To bracket a calibration: one fractional order, for large epsilons; each costs some 20 ms.
_COARSE_ORDERS = (1.5, *_TAIL_ORDERS[5:])
# Below this delta float64 round-off of the Fourier transform (about 1e-13) is no longer small beside delta.
_SMALLEST_PRV_DELTA = 1e-9
# Below this noise the series for fractional orders hardly converges. The closed form without subsampling is
# used there. It is an upper bound, because subsampling only lowers the divergence.
_LEAST_SERIES_NOISE = 0.1
# Above this epsilon PRV's domain grows large, and a third digit has no use.
_LARGEST_PRV_EPSILON = 60.0
_LARGEST_PRV_MESH = 1 << 20  # points, approximately
# Cache of discretised losses by their inputs, the latest last: each takes up to 8 MB.
_DISCRETISED: OrderedDict[tuple[Any, ...], tuple[Any, ...]] = OrderedDict()
_MOST_KEPT = 32


@dataclass(frozen=True)
class Mechanism:
    """`steps` Poisson-subsampled Gaussian steps with one noise multiplier (std / clip norm) and one rate.

    Raises ValueError for a noise multiplier, rate or number of steps that cannot be accounted.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier}: must be a finite number above 0; "
                "calibrate() computes it from a target epsilon"
            )
        _check_rate(self.sample_rate)
        _check_steps(self.steps)


@dataclass(frozen=True)
class PureDP:
    """A mechanism with (epsilon, 0)-DP, such as a count with Laplace noise."""

    epsilon: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon={self.epsilon}: must be a finite number above 0, e.g. 0.1")


AnyMechanism = Mechanism | PureDP


def epsilon(mechanisms: Sequence[AnyMechanism], delta: float, *, accountant: Accountant = "prv") -> float:
    """Upper bound on epsilon at `delta` of all mechanisms together; 0 if there is none.

    Pure epsilons are added to the epsilon of the Gaussian steps (basic composition), since few are expected.
    For more than `MOST_EXACT` different kinds of Gaussian steps the bound is coarser (`is_coarse`).
    Raises ValueError for a delta outside (0, 1) or an unknown accountant.

    >>> once = Mechanism(noise_multiplier=2.0, sample_rate=0.1, steps=100)
    >>> epsilon([once, once], 1e-5) == epsilon([Mechanism(2.0, 0.1, 200)], 1e-5)
    True
    """
    _check_delta(delta)
    _check_accountant(accountant)
    pure = math.fsum(m.epsilon for m in mechanisms if isinstance(m, PureDP))
    merged = _merged(mechanisms)
    if not merged:
        return pure
    if len(merged) > MOST_EXACT:
        return pure + renyi_epsilon(merged, float(delta))
    return pure + _epsilon(merged, float(delta), accountant)


def is_coarse(mechanisms: Sequence[AnyMechanism]) -> bool:
    """Whether `epsilon` uses the coarser Renyi bound, because there are too many different mechanisms."""
    return len(_merged(mechanisms)) > MOST_EXACT


def _merged(mechanisms: Sequence[AnyMechanism]) -> tuple[tuple[float, float, int], ...]:
    """(noise multiplier, rate, steps) of each kind of Gaussian step."""
    steps: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if isinstance(mechanism, PureDP):
            continue
        key = (float(mechanism.noise_multiplier), float(mechanism.sample_rate))
        steps[key] = steps.get(key, 0) + mechanism.steps
    # Sorted, so that the order of the rounds changes neither the cache key nor a bit of the result.
    return tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items() if count > 0))


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "prv",
) -> float:
    """Smallest noise multiplier, to 0.1 %, with which `steps` steps cost at most `target_epsilon`.

    `steps` is the largest number that any one client may take (participation cap x steps a round), not the mean.
    Raises ValueError where no noise multiplier up to 1e7 is enough.
    """
    _check_target(target_epsilon)
    _check_delta(delta)
    _check_rate(sample_rate)
    _check_steps(steps)
    if steps == 0:
        raise ValueError("steps=0: nothing to calibrate; give the steps that one client may take in all, e.g. 200")
    _check_accountant(accountant)
    return _calibrate(float(target_epsilon), float(delta), float(sample_rate), int(steps), accountant)


@lru_cache(maxsize=256)
def _calibrate(target: float, delta: float, rate: float, steps: int, accountant: Accountant) -> float:
    def spent(noise: float) -> float:
        return epsilon([Mechanism(noise, rate, steps)], delta, accountant=accountant)

    def spent_coarsely(noise: float) -> float:
        rdp = np.asarray(_rdp(noise, rate, _COARSE_ORDERS)) * steps
        return _convert(rdp, _COARSE_ORDERS, delta)

    # A cheap Renyi bound brackets the result; the named accountant then decides.
    low, high = 1e-2, 1.0
    while spent_coarsely(high) > target:
        low, high = high, high * 2
        if high > 1e7:
            raise ValueError(
                f"target_epsilon={target} with delta={delta}, sample_rate={rate}, steps={steps}: "
                "no noise multiplier up to 1e7 is enough; raise target_epsilon or delta, or take fewer steps"
            )
    high = _bisect(spent_coarsely, target, low, high, tolerance=0.01)
    while spent(high) > target:
        high *= 1.02
    low = high / 1.1
    while low > 1e-3 and spent(low) <= target:
        low, high = low / 1.1, low
    return _bisect(spent, target, low, high, tolerance=0.001)


def _bisect(spent: Any, target: float, low: float, high: float, *, tolerance: float) -> float:
    """Regula falsi on a log-log scale (epsilon is nearly a power of the noise); returns the safe end."""
    spent_low, spent_high = spent(low), spent(high)
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if math.isfinite(spent_low) and 0 < spent_high < target < spent_low:
            slope = math.log(spent_low / spent_high) / math.log(high / low)
            guess = high * (spent_high / target) ** (1 / slope)
            # Slightly to the safe side, so that the bracket closes from above in few calls.
            guess *= 1 + tolerance / 3
            middle = min(max(guess, low * (1 + tolerance / 2)), high / (1 + tolerance / 2))
        value = spent(middle)
        if value <= target:
            high, spent_high = middle, value
            probe = middle / (1 + tolerance)
            if probe > low:
                probed = spent(probe)
                if probed <= target:
                    high, spent_high = probe, probed
                else:
                    low, spent_low = probe, probed
        else:
            low, spent_low = middle, value
    return float(high)


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant) -> float:
    orders = _ORDERS if accountant == "rdp" else _TAIL_ORDERS
    rdp = sum(np.asarray(_rdp(noise, rate, orders)) * count for noise, rate, count in merged)
    bound = _convert(np.asarray(rdp), orders, delta)
    if accountant == "rdp" or delta < _SMALLEST_PRV_DELTA or bound > _LARGEST_PRV_EPSILON:
        return bound
    # The error interval is 0.2 to 0.4 % of epsilon; a power of two, so that nearby epsilons share a
    # discretisation.
    error = min(2.0 ** math.floor(math.log2(0.004 * bound)), 2.0**-6) if bound > 0 else 2.0**-20
    # A tiny epsilon would need a mesh of many millions of points: allow the error of the largest mesh.
    total = sum(_horizon(count) for *_, count in merged)
    coarsest = 2 * (3 + 2 * bound) / _LARGEST_PRV_MESH * math.sqrt(total * math.log(12e3 / delta) / 2)
    error = max(error, 2.0 ** math.ceil(math.log2(coarsest)))
    try:
        tight = _prv_epsilon(merged, delta, error)
    except (RuntimeError, ValueError, FloatingPointError):
        return bound  # the numerical accountant failed; the Renyi bound is valid too
    # Both are upper bounds, so the smaller is one too.
    return min(tight, bound) if math.isfinite(tight) and tight >= 0 else bound


def _prv_epsilon(merged: tuple[tuple[float, float, int], ...], delta: float, error: float) -> float:
    from opacus.accountants.analysis.prv import compose_heterogeneous

    delta_error = delta / 1000
    horizons = tuple((noise, rate, _horizon(count)) for noise, rate, count in merged)
    with np.errstate(all="ignore"):
        discrete = _discretised(horizons, error, delta_error)
        composed = compose_heterogeneous(list(discrete), [count for *_, count in merged])
        _, _, upper = composed.compute_epsilon(delta, delta_error, error)
    return float(upper)


def _horizon(steps: int) -> int:
    """The next power of two: step counts up to it share one discretisation."""
    return 1 << (steps - 1).bit_length()


def _discretised(horizons: tuple[tuple[float, float, int], ...], error: float, delta_error: float) -> tuple[Any, ...]:
    """One discretised privacy loss per mechanism, on one domain that is safe up to the given step counts."""
    key = (horizons, error, delta_error)
    if key in _DISCRETISED:
        _DISCRETISED.move_to_end(key)
        return _DISCRETISED[key]
    found = _DISCRETISED[key] = _discretise(horizons, error, delta_error)
    while sum(map(len, _DISCRETISED.values())) > _MOST_KEPT and len(_DISCRETISED) > 1:
        _DISCRETISED.popitem(last=False)
    return found


def _discretise(horizons: tuple[tuple[float, float, int], ...], error: float, delta_error: float) -> tuple[Any, ...]:
    from opacus.accountants.analysis.prv import (
        Domain,
        PoissonSubsampledGaussianPRV,
        TruncatedPrivacyRandomVariable,
        discretize,
    )

    # As Opacus' compute_safe_domain_size (Gopi et al. 2021, remark 5.6), from cached Renyi values.
    total = sum(count for *_, count in horizons)
    singles = [np.asarray(_rdp(noise, rate, _TAIL_ORDERS)) for noise, rate, _ in horizons]
    together = sum(single * count for single, (*_, count) in zip(singles, horizons, strict=True))
    tails = [_convert(np.asarray(together), _TAIL_ORDERS, delta_error / 4)]
    tails += [_convert(single, _TAIL_ORDERS, delta_error / (8 * total)) for single in singles]
    half_width = max(*tails, error) + 3
    mesh = error / math.sqrt(total * math.log(12 / delta_error) / 2)
    domain = Domain.create_aligned(-half_width, half_width, mesh)
    return tuple(
        discretize(
            TruncatedPrivacyRandomVariable(PoissonSubsampledGaussianPRV(rate, noise), domain.t_min, domain.t_max),
            domain,
        )
        for noise, rate, _ in horizons
    )


@lru_cache(maxsize=1024)
def _rdp(noise: float, rate: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Renyi divergence of one step at each order."""
    if noise < _LEAST_SERIES_NOISE:
        return tuple(order / (2 * noise**2) for order in orders)
    from opacus.accountants.analysis.rdp import compute_rdp

    with np.errstate(all="ignore"):
        return tuple(float(v) for v in compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders)))


def _convert(rdp: np.ndarray, orders: tuple[float, ...], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # "optimal order is the largest": still a valid bound
        spent, _ = get_privacy_spent(orders=list(orders), rdp=list(rdp), delta=delta)
    # Renyi's conversion can dip below zero for tiny divergences.
    return max(float(spent), 0.0)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: must lie between 0 and 1; well below 1/examples, e.g. 1e-5")


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"sample_rate={rate}: must be above 0 and at most 1 (1: every example is in every step)")


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r}: must be a whole number, 0 or more")


def _check_target(target: float) -> None:
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"target_epsilon={target}: must be a finite number above 0, e.g. 8; or use privacy=off")


def _check_accountant(accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant={accountant!r}: must be one of {', '.join(ACCOUNTANTS)}")
