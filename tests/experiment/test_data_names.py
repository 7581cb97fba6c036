"""What a ledger calls its examples: the very arrays and who holds which, so that no other deal passes for the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedq
from fedq.config import ConfigError
from fedq.data import Dataset, Examples
from fedq.experiment import SERVER, Site, build
from fedq.experiment.ledgers import data_name, ledger_name
from fedq.privacy import Ledger, epsilon
from tests.quick import compose

WORDS = ["clients=3", "partition=iid", "model=linear", "train.epochs=null", "train.steps=2", "rounds=1"]
PRIVATE = [*WORDS, "privacy=example", "privacy.nominal_examples=40", "privacy.sample_rate=0.5"]
PRIVATE += ["privacy.target_epsilon=8", "privacy.noise_multiplier=4", "privacy.accountant=rdp"]


def arrays(order=None, *, changed=None):
    """120 examples of two classes, in whatever order; `changed`: one value of one example is another."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(120, 4)).astype(np.float32), rng.integers(0, 2, 120)
    if changed is not None:
        inputs[changed, 0] += 1
    order = np.arange(120) if order is None else order
    return Dataset(
        Examples(inputs[order], targets[order]), None, None, num_outputs=2, name="mine", fitted_on_private_data=False
    )


def name_of(data, *overrides):
    return build(compose([*PRIVATE, *overrides]), data=data).data_name


def test_the_same_arrays_dealt_alike_have_one_name():
    assert name_of(arrays()) == name_of(arrays())
    assert name_of(arrays()).startswith("mine#")


@pytest.mark.parametrize(
    "other",
    [arrays(np.roll(np.arange(120), 1)), arrays(changed=7), arrays(np.arange(119)), arrays(np.r_[1, 0, 2:120])],
    ids=["in another order", "one value changed", "one example less", "two examples swapped"],
)
def test_other_examples_under_the_same_config_have_another_name(other):
    assert name_of(other) != name_of(arrays())


def test_another_label_is_another_example():
    data = arrays()
    targets = data.train.targets.copy()
    targets[0] = 1 - targets[0]
    assert name_of(replace(data, train=Examples(data.train.inputs, targets))) != name_of(data)


def test_an_example_that_moves_to_another_client_is_another_deal():
    config, data = compose(PRIVATE), arrays()
    dealt = {"0": np.arange(40), "1": np.arange(40, 80), "2": np.arange(80, 120)}
    moved = {**dealt, "0": np.arange(39), "1": np.arange(39, 80)}
    renamed = {**dealt, "0": dealt["1"], "1": dealt["0"]}
    assert len({data_name(config, data, shards) for shards in (dealt, moved, renamed)}) == 3


def test_a_client_may_be_called_whatever_it_likes():
    names = "names=[inputs,targets,seed]"
    assert name_of(arrays(changed=7), names) != name_of(arrays(), names)


def test_a_server_that_holds_no_shard_and_a_run_without_privacy_go_by_the_config_alone():
    for config, owner in ((compose(PRIVATE), SERVER), (compose(WORDS), None)):
        experiment = build(config, data=arrays(), owner=owner)
        assert experiment.data_name == data_name(experiment.config, experiment.dataset, {})


def test_a_client_on_its_own_machine_names_them_before_it_opens_them():
    config = compose(PRIVATE)
    built = build(config, data=arrays(), owner=Site("1"))
    assert built.data_name == ledger_name(built.config, Site("1"))
    own = Site("1", Path("/own/data"))
    assert ledger_name(config, own) == own.data_name
    assert ledger_name(config, Site("1")) != ledger_name(compose([*WORDS, "seed=1"]), Site("1"))


# --- over one folder of ledgers --------------------------------------------------------------------------------


@pytest.fixture
def ledgers(tmp_path):
    return tmp_path / "ledgers"


def trained(ledgers, data, **objects):
    words = [*PRIVATE, f"privacy.ledger={ledgers}"]
    return fedq.run(words, data=data, root=ledgers.parent / "runs", progress=False, **objects)


@pytest.mark.integration
def test_two_runs_on_the_same_examples_compose(ledgers):
    first, second = trained(ledgers, arrays()), trained(ledgers, arrays())
    assert (first.private, second.private) == (True, True)
    for client in "012":
        rows = Ledger(ledgers / client / "ledger.sqlite", access="read").rows()
        assert len(rows) == 2
        assert second.epsilon == epsilon([row.spend.as_mechanism() for row in rows], 1e-5, accountant="rdp")


@pytest.mark.integration
def test_the_same_examples_in_another_order_are_refused_over_the_same_ledgers(ledgers):
    """Dealt in that order they lie with other clients, whose ledgers know nothing of what they have spent."""
    trained(ledgers, arrays())
    with pytest.raises(ConfigError, match="a new partition would spend the same examples twice"):
        trained(ledgers, arrays(np.random.default_rng(1).permutation(120)))
    assert all(len(Ledger(path).rows()) == 1 for path in ledgers.glob("*/ledger.sqlite"))


@pytest.mark.integration
def test_a_table_that_changed_in_its_place_is_refused_over_the_same_ledgers(ledgers):
    path = ledgers.parent / "own.csv"
    words = [*PRIVATE, f"privacy.ledger={ledgers}", "data=csv", f"data.path={path}", "data.target=sick"]
    words += ["data.standardize=false", "data.classes=[no,yes]", "data.test_fraction=0.1"]
    lines = [f"{n % 7},{n},{('no', 'yes')[n % 2]}" for n in range(90)]

    def ran():
        path.write_text("\n".join(["age,weight,sick", *lines]) + "\n")
        return fedq.run(words, root=ledgers.parent / "runs", progress=False)

    ran()
    ran()
    lines.insert(0, lines.pop())
    with pytest.raises(ConfigError, match="a new partition would spend the same examples twice"):
        ran()
