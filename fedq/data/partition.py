"""Partition the training examples over clients. Depends on labels and client keys; not on inputs, files or models."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedq.core.choices import PARTITIONS, implemented

Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

# Draws of a whole Dirichlet partition before the last one is repaired; usually one or two are enough.
DRAWS = 100


class Partitioner(Protocol):
    """A function to one sorted index array per client: disjoint, not empty, together all examples."""

    def __call__(
        self, targets: Array, groups: Array | None, *, clients: int, rng: np.random.Generator
    ) -> list[Indices]: ...


@dataclass(frozen=True)
class Iid:
    """Shuffle and split evenly: sizes differ by at most one."""

    def __call__(
        self, targets: Array, groups: Array | None, *, clients: int, rng: np.random.Generator
    ) -> list[Indices]:
        _check_clients(clients, len(targets))
        return [np.sort(shard) for shard in np.array_split(rng.permutation(len(targets)), clients)]


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each class is split by its own draw from Dirichlet(alpha), so sizes differ too.

    The per-class form of Yurochkin et al. 2019 (arXiv:1905.12022) of the skew of Hsu et al. 2019
    (arXiv:1909.06335). Small alpha gives each client few classes; large alpha approaches iid.
    Repeated until every client has `min_size` examples; the last draw is repaired if none succeeds.
    """

    alpha: float = 0.5
    min_size: int = 10

    def __post_init__(self) -> None:
        if not 1e-3 <= self.alpha <= 1e6:
            raise ValueError(f"partition.alpha={self.alpha}: must be 0.001..1e6; try 0.5 or partition=iid")
        if self.min_size < 1:
            raise ValueError(
                f"partition.min_size={self.min_size}: must be at least 1, so that no client is empty; try 10"
            )

    def __call__(
        self, targets: Array, groups: Array | None, *, clients: int, rng: np.random.Generator
    ) -> list[Indices]:
        num_examples = len(targets)
        _check_clients(clients, num_examples)
        if targets.ndim != 1 or targets.dtype.kind not in "iu":
            raise ValueError(
                f"partition=dirichlet skews classes, and these targets are {targets.dtype} of shape "
                f"{targets.shape}; use partition=iid or partition=by_column"
            )
        if clients * self.min_size > num_examples:
            raise ValueError(
                f"partition.min_size={self.min_size}: {clients} clients need {clients * self.min_size} "
                f"examples, and there are {num_examples}; use partition.min_size<={num_examples // clients} "
                f"or clients<={num_examples // self.min_size}"
            )
        classes, class_sizes = np.unique(targets, return_counts=True)
        for _ in range(DRAWS):
            counts = _draw_counts(class_sizes, clients, self.alpha, rng)
            if counts.sum(axis=0).min() >= self.min_size:
                break
        else:
            counts = _lift_to(counts, self.min_size)
        shards: list[list[Indices]] = [[] for _ in range(clients)]
        for label, taken in zip(classes, counts, strict=True):
            members = rng.permutation(np.flatnonzero(targets == label))
            for shard, part in zip(shards, np.split(members, taken.cumsum()[:-1]), strict=True):
                shard.append(part)
        return [np.sort(np.concatenate(parts)) for parts in shards]


@dataclass(frozen=True)
class ByColumn:
    """One client for each distinct key of `Dataset.groups`, in sorted order."""

    def __call__(
        self, targets: Array, groups: Array | None, *, clients: int, rng: np.random.Generator
    ) -> list[Indices]:
        if groups is None:
            raise ValueError(
                "partition=by_column: the data has no client keys for its examples; "
                "set data.client=COLUMN (data=csv), give Dataset.groups, or use partition=iid"
            )
        keys, key_of = np.unique(groups, return_inverse=True)
        if clients != len(keys):
            raise ValueError(
                f"clients={clients}: partition=by_column makes one client of each of the {len(keys)} keys "
                f"in the training examples; use clients={len(keys)}"
            )
        by_key = np.argsort(key_of, kind="stable")
        return np.split(by_key, np.bincount(key_of).cumsum()[:-1])


PARTITIONERS: dict[str, type[Iid] | type[Dirichlet] | type[ByColumn]] = implemented(
    PARTITIONS, {"iid": Iid, "dirichlet": Dirichlet, "by_column": ByColumn}
)


def _check_clients(clients: int, num_examples: int) -> None:
    if clients < 1:
        raise ValueError(f"clients={clients}: must be at least 1; try clients=10")
    if clients > num_examples:
        raise ValueError(
            f"clients={clients}: more clients than the {num_examples} training examples; use clients<={num_examples}"
        )


def _draw_counts(class_sizes: Counts, clients: int, alpha: float, rng: np.random.Generator) -> Counts:
    """The number of examples of each class (row) for each client (column); rows sum to the class's size."""
    shares = rng.dirichlet(np.full(clients, alpha), size=len(class_sizes))
    # Rounding the cumulative shares, not the shares, keeps every row's sum exact.
    cuts = np.rint(shares.cumsum(axis=1) * class_sizes[:, None]).astype(np.int64)
    cuts[:, -1] = class_sizes
    return np.diff(cuts, axis=1, prepend=0)


def _lift_to(counts: Counts, min_size: int) -> Counts:
    """Move examples to the smallest client from the largest one's main class until all have `min_size`."""
    counts = counts.copy()
    sizes = counts.sum(axis=0)
    while sizes.min() < min_size:
        giver, taker = int(sizes.argmax()), int(sizes.argmin())
        label = int(counts[:, giver].argmax())
        # The giver stays at or above min_size, so no move makes another client too small: the loop ends.
        moved = min(min_size - sizes[taker], sizes[giver] - min_size, counts[label, giver])
        counts[label, giver] -= moved
        counts[label, taker] += moved
        sizes[giver] -= moved
        sizes[taker] += moved
    return counts
