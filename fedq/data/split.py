"""Choose training, validation and test examples. Depends on counts and fractions; not on the examples."""

import hashlib

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def check_fractions(*, validation_fraction: float, test_fraction: float = 0.0) -> None:
    """ValueError for fractions that leave no training examples."""
    for key, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ValueError(f"data.{key}={value}: must be at least 0 and below 1; try 0.1")
    if validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.validation_fraction={validation_fraction} and data.test_fraction={test_fraction} leave no "
            "training examples: their sum must be below 1; try 0.1 and 0.2"
        )


def trained_on(num_examples: int, fraction: float) -> int:
    """The number of training examples of a client where a share is held out; at least one."""
    return max(1, num_examples - held_out(num_examples, fraction))


def held_out(num_examples: int, fraction: float) -> int:
    """The size of a held-out part: rounded, but not empty if the fraction is above 0."""
    return max(1, round(num_examples * fraction)) if fraction else 0


def held_out_by_content(inputs: npt.NDArray[np.generic], targets: npt.NDArray[np.generic], share: float) -> Indices:
    """Indices of the held-out examples: a hash of each example's content decides, for about `share` of them.

    Adding or removing an example moves no other example from one side to the other, as DP requires. Equal examples
    are on the same side. Everybody who knows an example knows its side.
    """
    bound = int(share * 2**64)
    chosen = []
    for index, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        digest = hashlib.blake2b(x.tobytes(), key=b"fedq held out", digest_size=8)
        digest.update(y.tobytes())
        if int.from_bytes(digest.digest(), "little") < bound:
            chosen.append(index)
    return np.array(chosen, dtype=np.int64)


def split_indices(
    num_examples: int, *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[Indices, Indices, Indices]:
    """Shuffle once, then cut: (train, validation, test), disjoint and covering all examples.

    The random stream depends on `seed` only, so the split is the same on every machine and for every experiment.
    """
    check_fractions(validation_fraction=validation_fraction, test_fraction=test_fraction)
    num_test = held_out(num_examples, test_fraction)
    num_validation = held_out(num_examples, validation_fraction)
    num_train = num_examples - num_test - num_validation
    if num_train < 1:
        raise ValueError(
            f"{num_examples} examples split into {num_validation} for validation and {num_test} for test "
            "leave none to train on; lower data.validation_fraction or data.test_fraction"
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(num_examples)
    train, validation, test = np.split(order, [num_train, num_train + num_validation])
    return train, validation, test
