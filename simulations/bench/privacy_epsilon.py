"""fedq's epsilon beside another accountant's, over a grid of settings. Needs no data and no model.

Knows two references: Google's dp-accounting where it is installed, and otherwise a privacy loss distribution
computed here, from the densities alone.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import ndtr

from fedq.privacy import Mechanism, epsilon
from simulations.bench.row import Row
from simulations.bench.timing import Effort

DELTA = 1e-5
# Noise multiplier, sampling rate, steps: from full batches to rare ones, epsilon 0.2 to 12.
GRID = [
    (10.0, 1.0, 100), (3.0, 1.0, 10), (6.0, 0.5, 100), (4.0, 0.25, 400), (5.27, 0.1, 1200), (2.0, 0.1, 200),
    (1.0, 0.1, 40), (1.5, 0.05, 1000), (1.0, 0.01, 2000), (0.7, 0.01, 300),
]  # fmt: skip

Reference = Callable[[float, float, int], float]


def rows(effort: Effort) -> Iterator[Row]:
    reference, name = _reference()
    pairs = [(epsilon([Mechanism(*setting)], DELTA), reference(*setting), setting) for setting in GRID]
    ours, theirs, (noise, rate, steps) = max(pairs, key=lambda pair: abs(pair[0] / pair[1] - 1))
    words = (
        f"epsilon at delta {DELTA:g} of PRV accounting over that of {name}, at the one of {len(GRID)} settings where "
        f"they differ most: noise multiplier {noise:g}, rate {rate:g}, {steps} steps"
    )
    yield Row("epsilon_vs_dp_accounting", ours, theirs, "epsilon", "ours/reference", words)


def _reference() -> tuple[Reference, str]:
    try:
        from dp_accounting import NeighboringRelation, dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        return by_fft, "a privacy loss distribution by FFT (dp-accounting is not installed)"

    def theirs(noise: float, rate: float, steps: int) -> float:
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
        return float(accountant.get_epsilon(DELTA))

    return theirs, "dp-accounting"


def by_fft(noise: float, rate: float, steps: int) -> float:
    """The larger of the epsilons for adding and for removing an example (Koskela et al. 2020, arXiv:1906.03049).

    The privacy loss of one step is put on a mesh, each value at its nearest point, and its distribution is raised to
    the power `steps` in Fourier space. No bound, but right to about steps * mesh^2 / noise.
    """
    return max(_epsilon(_loss_of_removal(noise, rate), steps), _epsilon(_loss_of_addition(noise, rate), steps))


_POINTS, _REACH = 1 << 21, 64.0  # losses from -64 to 64
_MESH = 2 * _REACH / _POINTS
Cdf = Callable[[np.ndarray], np.ndarray]  # of one step's privacy loss


def _output_of(loss: np.ndarray, noise: float, rate: float) -> np.ndarray:
    """The output x at which log((1 - q) + q N(1, noise^2)(x) / N(0, noise^2)(x)) is `loss`; -inf below all of them."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = noise**2 * np.log(np.expm1(loss) / rate + 1) + 0.5
    return np.where(np.isnan(x), -np.inf, x)


def _loss_of_removal(noise: float, rate: float) -> Cdf:
    def cdf(loss: np.ndarray) -> np.ndarray:
        x = _output_of(loss, noise, rate)
        return (1 - rate) * ndtr(x / noise) + rate * ndtr((x - 1) / noise)

    return cdf


def _loss_of_addition(noise: float, rate: float) -> Cdf:
    return lambda loss: ndtr(-_output_of(-loss, noise, rate) / noise)


def _epsilon(cdf: Cdf, steps: int) -> float:
    losses = (np.arange(_POINTS) - _POINTS // 2) * _MESH
    edges = np.append(losses - _MESH / 2, losses[-1] + _MESH / 2)
    one = np.diff(cdf(edges))
    # Loss 0 comes first for the transform, and in the middle again afterwards.
    all_steps = np.fft.fftshift(np.fft.irfft(np.fft.rfft(np.fft.ifftshift(one)) ** steps, _POINTS))
    low, high = 0.0, _REACH / 2
    while high - low > 1e-6:
        middle = (low + high) / 2
        beyond = losses > middle
        delta = float((all_steps[beyond] * -np.expm1(middle - losses[beyond])).sum())
        low, high = (middle, high) if delta > DELTA else (low, middle)
    return high if math.isfinite(high) else math.inf
