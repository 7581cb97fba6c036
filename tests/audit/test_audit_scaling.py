"""A scaler's mark: means that are zero to round-off."""

import numpy as np

from fedq.audit.scaling import scaling_check


def test_rows_scaled_by_their_own_mean_are_seen():
    rows = np.random.default_rng(0).normal(3, 2, size=(500, 6))
    scaled = ((rows - rows.mean(0)) / rows.std(0)).astype(np.float32)
    assert scaling_check({"all": scaled}).p_value < 1e-4


def test_rows_scaled_by_public_constants_are_not():
    rows = np.random.default_rng(0).normal(3, 2, size=(500, 6))
    assert scaling_check({"all": ((rows - 3) / 2).astype(np.float32)}).p_value > 0.05


def test_one_client_s_own_scaler_is_seen_among_others():
    random = np.random.default_rng(1)
    parts = {str(i): random.normal(size=(200, 4)) for i in range(9)}
    own = random.normal(size=(200, 4))
    check = scaling_check({**parts, "nine": own - own.mean(0)})
    assert check.p_value < 1e-3
    assert "nine" in check.seen


def test_constant_features_and_few_rows_say_nothing():
    assert scaling_check({"a": np.zeros((100, 5)), "b": np.zeros((2, 5))}).p_value == 1.0
