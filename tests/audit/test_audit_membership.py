"""The membership score on losses whose order is known."""

import numpy as np
import pytest

from fedq.audit.membership import area, membership
from fedq.data import Examples
from fedq.training import LOSSES


def test_all_larger_none_larger_and_ties():
    assert area(np.array([3.0, 4.0]), np.array([1.0, 2.0]))[0] == 1.0
    assert area(np.array([1.0, 2.0]), np.array([3.0, 4.0]))[0] == 0.0
    assert area(np.array([1.0, 1.0]), np.array([1.0, 1.0]))[0] == 0.5
    # Of the four pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2.
    assert area(np.array([3.0, 2.0]), np.array([1.0, 2.0]))[0] == pytest.approx(3.5 / 4)


def test_the_interval_covers_one_half_in_19_of_20_where_there_is_no_difference():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        auc, error = area(random.normal(size=80), random.normal(size=120))
        covered += abs(auc - 0.5) <= 1.96 * error
    assert abs(covered / 400 - 0.95) <= 4 * (0.95 * 0.05 / 400) ** 0.5


def test_a_model_that_knows_its_examples_is_seen():
    targets = np.arange(40) % 2
    examples = Examples(np.zeros((40, 1), np.float32), targets)
    sure = np.where(np.eye(2)[targets] > 0, 5.0, -5.0).astype(np.float32)
    unsure = np.zeros((40, 2), np.float32)
    score = membership("a", sure, examples, unsure, examples, loss=LOSSES["cross_entropy"])
    assert (score.auc, score.low, score.high, score.members) == (1.0, 1.0, 1.0, 40)
    assert membership("b", unsure, examples, unsure, examples, loss=LOSSES["cross_entropy"]).auc == 0.5
