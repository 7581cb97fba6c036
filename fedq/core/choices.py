"""Names of the closed options whose values are implemented in packages that load torch or an accountant.

The help page and the rules of a config need the names alone, so both sides take them from here. The dict of the
implementations is made by `implemented`, which fails on import if a name is missing or unknown.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

PARTITIONS: Final = ("iid", "dirichlet", "by_column")
LOSSES: Final = ("cross_entropy", "binary_cross_entropy", "mse", "l1", "huber")
METRICS: Final = ("accuracy", "multilabel_accuracy", "r2", "mse", "mae")
AUGMENTATIONS: Final = ("flip", "shift")
AGGREGATES: Final = ("mean", "median", "trimmed_mean")
ACCOUNTANTS: Final = ("prv", "rdp")

T = TypeVar("T")


def implemented(names: tuple[str, ...], implementations: Mapping[str, T]) -> dict[str, T]:
    """The implementations in the order of `names`; TypeError if they are not exactly those of the names."""
    if differ := set(names) ^ set(implementations):
        raise TypeError(f"{', '.join(sorted(differ))}: fedq.core.choices and the implementations must name the same")
    return {name: implementations[name] for name in names}
