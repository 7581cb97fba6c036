"""scikit-learn's bundled handwritten digits. Needs no download and no files."""

import numpy as np

from fedq.data.examples import Dataset, Examples
from fedq.data.split import split_indices


def digits(validation_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 images of 8x8 grey levels in [0, 1], shape (n, 1, 8, 8), 10 classes (UCI optdigits, test part).

    Fractions refer to all examples; `seed` fixes the split and is independent of the experiment's seed.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    loaded = load_digits()
    # Grey levels count the set pixels of a 4x4 cell: 16 is the public maximum, not a fitted one.
    images = (loaded.images / 16).astype(np.float32)[:, None]
    parts = split_indices(len(images), validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
    train, validation, test = (Examples(images[part], loaded.target[part]) for part in parts)
    return Dataset(
        train,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
        num_outputs=10,
        name="digits",
        fitted_on_private_data=False,  # scaled by 16, a constant of the format
    )
