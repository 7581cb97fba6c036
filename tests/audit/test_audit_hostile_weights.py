"""Whether shares add up, whatever weights a server sends."""

import numpy as np
import pytest

from fedq.audit import hostile_weights
from fedq.audit.hostile_weights import shares_check
from fedq.audit.neighbours import scaled
from tests.audit.bugs import Unpadded


def seen(subject, examples):
    return shares_check(subject, examples, rng=np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "dropout", "views", "front"])
def test_shares_of_the_right_mechanism_add_up_to_the_last_bit_of_float32(make_subject, examples, model, monkeypatch):
    monkeypatch.setattr(hostile_weights, "ATTACKED", 1)
    check = seen(make_subject(model=model, sample_rate=0.1), examples)
    assert check.p_value == 1.0, check.seen


@pytest.mark.integration
@pytest.mark.hostile
def test_padding_and_probe_are_missed_where_they_are_not_there(make_subject, examples):
    """No check looked at what an example does to the shares of others."""
    check = seen(make_subject(mechanism=Unpadded), examples)
    assert check.p_value == 0.0
    assert float(check.seen.split("up to ")[1].split()[0]) > 100


def test_weights_are_scaled_by_powers_of_two_and_otherwise_as_they_were():
    weights = np.linspace(-1, 1, 50, dtype=np.float32)
    for seed in range(10):
        ratio = scaled(weights, np.random.default_rng(seed))[weights != 0] / weights[weights != 0]
        assert set(np.log2(ratio).tolist()) <= {0.0, 10.0, 20.0, 40.0}
