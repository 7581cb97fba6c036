"""How many processes train: the number that is asked for, or as many as pay."""

import numpy as np
import pytest

from fedq.config import compose
from fedq.experiment import build
from fedq.runtime import workers
from fedq.runtime.workers import physical_cores, workers_for

SMALL = ["model=linear", "clients=4", "rounds=2"]


def chosen(monkeypatch, *overrides, cores=8, seconds=1000.0):
    monkeypatch.setattr(workers, "physical_cores", lambda: cores)
    monkeypatch.setattr(workers, "expected_seconds", lambda experiment: seconds)
    return workers_for(build(compose([*SMALL, *overrides])))


def test_a_number_is_taken_up_to_the_number_of_clients(monkeypatch):
    assert chosen(monkeypatch, "runtime.workers=3")[0] == 3
    assert chosen(monkeypatch, "runtime.workers=200")[0] == 4


@pytest.mark.parametrize(
    ("overrides", "cores", "seconds", "count", "why"),
    [
        ([], 2, 1000.0, 2, "as many as physical cores"),
        ([], 8, 1000.0, 4, "as many as clients a round"),
        (["fraction=0.5"], 8, 1000.0, 2, "as many as clients a round"),
        ([], 1, 1000.0, 1, "one physical core"),
        (["fraction=0.25"], 8, 1000.0, 1, "one client a round"),
        ([], 8, 0.01, 1, "too short for another process to pay"),
    ],
)
def test_auto_takes_as_many_as_pay(monkeypatch, overrides, cores, seconds, count, why):
    found, told = chosen(monkeypatch, *overrides, cores=cores, seconds=seconds)
    assert found == count
    assert why in told


def test_longer_training_is_expected_to_take_longer():
    short, long = (
        build(compose([*SMALL, f"rounds={rounds}", "train.epochs=null", "train.steps=50"])) for rounds in (1, 1000)
    )
    assert 0 < workers.expected_seconds(short) < workers.expected_seconds(long)


def test_timing_a_step_changes_nothing_of_what_is_trained():
    timed, other = build(compose(SMALL)), build(compose(SMALL))
    timed.trainer.seconds_of_a_step(timed.dataset.train)
    fits = [
        e.trainer.fit(e.initial, e.dataset.train[:64], round=1, batches=np.random.default_rng(0), torch_seed=0).vector
        for e in (timed, other)
    ]
    assert (fits[0] == fits[1]).all()


def test_there_is_at_least_one_core():
    assert physical_cores() >= 1
