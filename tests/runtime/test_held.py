"""What ledgers hold before a run, as its forecast tells."""

import pytest

from fedq.experiment import build
from fedq.experiment.ledgers import ledger_file
from fedq.privacy import Ledger
from fedq.runtime.forecast import held
from tests.quick import compose

WORDS = ["experiment=demo", "clients=3", "rounds=2"]


@pytest.fixture
def experiment(tmp_path):
    return build(compose([*WORDS, f"privacy.ledger={tmp_path / 'ledgers'}"]))


def spend(experiment, tmp_path, name, rounds):
    path = ledger_file(experiment.config, tmp_path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    private = experiment.client(name, folder=tmp_path, run="earlier").privacy
    for round in range(1, rounds + 1):
        Ledger(path).spend(private.plan.spend(private.context(round), noise_source="os"))


@pytest.mark.integration
def test_where_nothing_was_spent_there_is_nothing_to_tell(experiment):
    assert held(experiment) is None


def test_where_no_ledger_outlives_the_run_there_is_nothing_to_tell():
    assert held(build(compose(WORDS))) is None


def test_whoever_has_no_round_left_or_a_ledger_that_is_damaged_is_named_and_why(experiment, tmp_path):
    spend(experiment, tmp_path, "0", rounds=2)
    spend(experiment, tmp_path, "1", rounds=1)
    damaged = ledger_file(experiment.config, tmp_path, "2")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a ledger" * 100)
    told = held(experiment)
    assert told.lacking == {"0": "budget", "2": "ledger"}
    assert 7.9 < told.epsilon <= told.target == 8
    assert told.after > 8
