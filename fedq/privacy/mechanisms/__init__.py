"""Noise mechanisms: one file for each, and one line here. `privacy.noise` names one of them.

`privacy.noise=seeded` is no mechanism: it is the discrete Gaussian from a source that others can compute again.
"""

from typing import Final

from fedq.core import choices
from fedq.core.choices import implemented
from fedq.privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from fedq.privacy.mechanisms.gaussian import Gaussian
from fedq.privacy.mechanisms.mechanism import NoiseMechanism

# Name in a config -> mechanism.
NOISES: Final[dict[str, NoiseMechanism]] = implemented(
    choices.NOISES, {"discrete": DiscreteGaussian(), "gaussian": Gaussian()}
)
SEEDED: Final = "seeded"

__all__ = ["NOISES", "SEEDED", "NoiseMechanism", "mechanism_name", "spent_by", "strength"]


def mechanism_name(noise: str) -> str:
    """The mechanism of a value of `privacy.noise`; `seeded` names another source of random numbers, not a noise."""
    return "discrete" if noise == SEEDED else noise


def strength(noise: str) -> int:
    """Rank of a value of `privacy.noise` for a policy; seeded noise protects nobody, so it is the weakest."""
    return 0 if noise == SEEDED else NOISES[noise].strength


def spent_by(spend_name: str) -> NoiseMechanism:
    """The mechanism of a spend in a ledger. KeyError for the noise on counts, which is no mechanism on sums."""
    return {mechanism.spend_name: mechanism for mechanism in NOISES.values()}[spend_name]
