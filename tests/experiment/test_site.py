"""An experiment on the machine of one owner: its own data alone, and the very client that a simulation has."""

from dataclasses import replace

import numpy as np
import pytest

from fedq import codec
from fedq.config import ConfigError
from fedq.data import write_shard
from fedq.experiment import SERVER, Site, build
from fedq.flower import wire
from tests.quick import compose

pytestmark = pytest.mark.integration

USUAL = ["clients=4", "partition=dirichlet", "model.hidden=[12]", "train.epochs=1", "quant=off", "privacy=off"]
KINDS = {
    "float": ["codec=float32"],
    "int8": ["codec=int8", "quant=int8"],
    "private": ["codec=int8", "privacy=example", "privacy.noise=seeded", "privacy.noise_multiplier=1", "rounds=2"],
}


def config_of(*overrides):
    return compose([*USUAL, *overrides])


def shard_of(experiment, identity, folder):
    path = folder / f"{identity}.shard.npz"
    write_shard(path, experiment.dataset.train[experiment.shards[identity]], experiment.dataset)
    return path


def first_update(experiment, identity, start, folder):
    """The packet that the client sends in round 1 for the weights `start`."""
    client = experiment.client(identity, folder=folder, run="r", durable=True)
    packet = codec.encode(start, "float32", layout=client.trainer.layout, kind="weights", round=1)
    return client.train(wire.Request(1, -1, {"model": packet})).packets["update"]


def problems_of(config, owner=None):
    with pytest.raises(ConfigError, match=r"\S") as caught:
        build(config, owner=owner)
    return {p.key: str(p) for p in caught.value.problems}


# --- a shard file of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_on_its_own_shard_has_the_layout_of_the_simulated_one(kind, tmp_path):
    simulated = build(config_of(*KINDS[kind]))
    own = build(simulated.config, owner=Site("2", shard_of(simulated, "2", tmp_path)))
    assert own.layout.digest == simulated.layout.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_on_its_own_shard_sends_the_bits_of_the_simulated_one(kind, tmp_path):
    simulated = build(config_of(*KINDS[kind]))
    own = build(simulated.config, owner=Site("2", shard_of(simulated, "2", tmp_path)))
    start = simulated.initial.copy()
    theirs = first_update(simulated, "2", start, tmp_path / "simulated")
    assert first_update(own, "2", start, tmp_path / "own") == theirs


def test_the_shard_of_another_client_gives_another_update(tmp_path):
    simulated = build(config_of())
    own = build(simulated.config, owner=Site("2", shard_of(simulated, "3", tmp_path)))
    start = simulated.initial.copy()
    theirs = first_update(simulated, "2", start, tmp_path / "simulated")
    assert first_update(own, "2", start, tmp_path / "own") != theirs


def test_an_owner_deals_nothing_and_keeps_all_that_is_its_own(tmp_path):
    simulated = build(config_of())
    own = build(simulated.config, owner=Site("2", shard_of(simulated, "2", tmp_path)))
    assert {name: len(indices) for name, indices in own.shards.items()} == {"2": len(simulated.shards["2"])}


def test_a_shard_of_one_class_still_has_an_output_for_each(tmp_path):
    simulated = build(config_of())
    zeros = np.flatnonzero(simulated.dataset.train.targets == 0)
    write_shard(tmp_path / "zeros.shard.npz", simulated.dataset.train[zeros], simulated.dataset)
    own = build(simulated.config, owner=Site("0", tmp_path / "zeros.shard.npz"))
    assert own.layout.digest == simulated.layout.digest


def test_a_shard_that_is_not_there_is_reported_by_its_path(tmp_path):
    path = tmp_path / "gone.shard.npz"
    assert str(path) in problems_of(config_of(), Site("0", path))["data.path"]


def test_a_shard_scaled_by_a_statistic_of_private_data_is_refused_under_dp(tmp_path):
    simulated = build(config_of())
    path = tmp_path / "fitted.shard.npz"
    write_shard(path, simulated.dataset.train[:50], replace(simulated.dataset, fitted_on_private_data=True))
    assert "data.standardize" in problems_of(config_of(*KINDS["private"]), Site("0", path))


def test_an_owner_s_examples_have_one_name_in_its_ledger_whatever_the_server_asks(tmp_path):
    path = shard_of(build(config_of()), "2", tmp_path)
    asked = (config_of("seed=0"), config_of("seed=1"), config_of("partition=iid"))
    assert len({build(config, owner=Site("2", path)).data_name for config in asked}) == 1


def test_the_examples_of_two_places_have_two_names(tmp_path):
    assert Site("2", tmp_path / "a").data_name != Site("2", tmp_path / "b").data_name


# --- where a client's data lie is never told by the network --------------------------------------------


CSV = ["data=csv", "data.target=sick", "data.classes=[no,yes]", "data.standardize=false", "model=linear"]
CSV = [*CSV, "clients=2", "partition=iid", "train.epochs=1", "quant=off", "privacy=off"]


def table(path, rows=12, *, labels=("no", "yes")):
    lines = ["age,weight,sick", *(f"{n},{n * 2},{labels[n % len(labels)]}" for n in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


def csv_without(*keys):
    return [w for w in CSV if not w.startswith(keys)]


def test_a_path_from_the_network_is_not_opened_by_a_client_without_one_of_its_own(tmp_path):
    config = compose([*CSV, f"data.path={table(tmp_path / 'server.csv')}"])
    assert "a path that came over the network is not opened" in problems_of(config, Site("0"))["data.path"]


def test_a_client_opens_its_own_path_and_not_the_network_s(tmp_path):
    config = compose([*CSV, f"data.path={table(tmp_path / 'other.csv', rows=30)}"])
    assert len(build(config, owner=Site("0", table(tmp_path / "own.csv", rows=8))).dataset.train) == 8


def test_a_loader_that_takes_no_path_cannot_open_a_client_s_own(tmp_path):
    assert "digits takes no such argument" in problems_of(config_of(), Site("0", tmp_path / "own.csv"))["data.path"]


def test_a_client_without_a_path_takes_its_part_of_data_that_everybody_has():
    simulated = build(config_of())
    assert build(simulated.config, owner=Site("*")).shards["2"].tolist() == simulated.shards["2"].tolist()


# --- the server ----------------------------------------------------------------------------------------


def test_the_server_deals_nothing():
    assert build(config_of("strategy.weighting=equal"), owner=SERVER).shards == {}


def test_the_server_knows_the_layout_of_its_clients():
    assert build(config_of("strategy.weighting=equal"), owner=SERVER).layout.digest == build(config_of()).layout.digest


def test_the_server_keeps_its_test_set():
    served, simulated = build(config_of("strategy.weighting=equal"), owner=SERVER).dataset, build(config_of()).dataset
    assert served.test.inputs.tobytes() == simulated.test.inputs.tobytes()


def test_the_server_may_have_fewer_examples_than_clients():
    config = config_of("clients=5000", "partition=iid", "strategy.weighting=equal")
    assert build(config, owner=SERVER).shards == {}
    assert "clients" in problems_of(config)


# --- a table of one's own ------------------------------------------------------------------------------


def test_a_table_of_one_client_needs_the_classes_named(tmp_path):
    config = compose([*csv_without("data.classes"), "data.path=x.csv"])
    assert "Name them all, in one order" in problems_of(config, Site("0", table(tmp_path / "own.csv")))["data.classes"]


@pytest.mark.parametrize("more", [["data.standardize=true"], []])
def test_a_table_of_one_client_is_not_scaled_by_a_mean_of_its_own(more, tmp_path):
    config = compose([*csv_without("data.standardize"), "data.path=x.csv", *more])
    assert "a mean of its own" in problems_of(config, Site("0", table(tmp_path / "own.csv")))["data.standardize"]


def test_both_are_reported_at_once(tmp_path):
    config = compose([*csv_without("data.standardize", "data.classes"), "data.path=x.csv"])
    assert {"data.standardize", "data.classes"} <= set(problems_of(config, Site("0", table(tmp_path / "own.csv"))))


def test_a_regression_needs_no_classes(tmp_path):
    (tmp_path / "own.csv").write_text("age,weight\n1,2.5\n2,3.5\n3,4\n")
    words = [*csv_without("data.classes", "data.target"), "data.path=x.csv", "data.target=weight"]
    words += ["data.task=regression", "train.loss=mse", "train.metric=r2"]
    assert len(build(compose(words), owner=Site("0", tmp_path / "own.csv")).dataset.train) == 3


@pytest.mark.parametrize("more", [[], ["data.test_fraction=0.5", "data.validation_fraction=0.25"]])
def test_all_rows_of_a_table_of_one_client_are_trained_on(more, tmp_path):
    config = compose([*CSV, "data.path=x.csv", *more])
    data = build(config, owner=Site("0", table(tmp_path / "own.csv"))).dataset
    assert (sorted(data.train.inputs[:, 0].tolist()), data.validation, data.test) == (list(range(12)), None, None)


def test_two_owners_number_their_labels_alike(tmp_path):
    config = compose([*CSV, "data.path=x.csv"])
    well, sick = table(tmp_path / "well.csv", labels=["no"]), table(tmp_path / "sick.csv", labels=["yes"])
    targets = [set(build(config, owner=Site("0", path)).dataset.train.targets.tolist()) for path in (well, sick)]
    assert targets == [{0}, {1}]


def test_a_table_of_one_client_gives_the_layout_of_the_whole_one(tmp_path):
    config = compose([*CSV, f"data.path={table(tmp_path / 'whole.csv', rows=40)}"])
    own = build(config, owner=Site("0", table(tmp_path / "own.csv", labels=["yes"])))
    assert own.layout.digest == build(config).layout.digest


def test_a_table_that_everybody_has_is_still_split(tmp_path):
    config = compose([*CSV, f"data.path={table(tmp_path / 'whole.csv', rows=40)}"])
    assert build(config).dataset.test is not None
