"""scikit-learn's bundled handwritten digits. Needs no download and no files."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedq.data.examples import Dataset, Examples
from fedq.data.split import split_indices


def digits(validation_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 images of 8x8 grey levels in [0, 1], shape (n, 1, 8, 8), 10 classes (UCI optdigits, test part).

    Fractions refer to all examples; `seed` fixes the split and is independent of the experiment's seed.
    """
    pixels, labels = _table()
    # Grey levels count the set pixels of a 4x4 cell: 16 is the public maximum, not a fitted one.
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = split_indices(len(images), validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
    train, validation, test = (Examples(images[part], labels[part]) for part in parts)
    return Dataset(
        train,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
        num_outputs=10,
        name="digits",
        fitted_on_private_data=False,  # scaled by 16, a constant of the format
    )


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels 0 to 16, (n, 64), and labels, int64 (n,), from scikit-learn's own file.

    Read without scikit-learn, whose import takes longer than the training of a small experiment's first round.
    """
    package = find_spec("sklearn")
    file = Path(package.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if package else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.data.astype(np.int64), loaded.target
