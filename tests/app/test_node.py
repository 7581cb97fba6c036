"""A client on its owner's machine: what the owner says of it, and what is refused before any data are opened."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from fedq import flower
from fedq.app.node import Node, client_of, home
from fedq.config import ConfigError, compose
from fedq.data import write_shard
from fedq.experiment import build
from fedq.new.app import make_app

USUAL = ["clients=4", "quant=off", "privacy=off", "partition=iid"]  # what may cross a network
PRIVATE = ["clients=4", "quant=off", "privacy=example", "privacy.noise_multiplier=1", "partition=iid"]


@pytest.fixture(autouse=True)
def _flower(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    flower.enter()
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    whole = build(compose(USUAL))
    path = tmp_path_factory.mktemp("own") / "own.shard.npz"
    write_shard(path, whole.dataset.train[:40], whole.dataset)
    return path


def client(overrides, **node_config):
    config = {key.replace("_", "-"): str(v) if isinstance(v, Path) else v for key, v in node_config.items()}
    return client_of(Context(7, 1, config, RecordDict(), {"overrides": json.dumps(overrides)}))


# --- what an owner says --------------------------------------------------------------------------------


def test_all_that_an_owner_says_is_read():
    said = {"name": "clinic-a", "data-path": "/own/data", "state-dir": "/own/state"}
    assert Node.read(said) == Node("clinic-a", None, Path("/own/data"), Path("/own/state"))


def test_a_partition_says_who_a_client_is():
    assert Node.read({"partition-id": 3}) == Node(None, 3, None, None)


def test_keys_of_others_are_left_to_them():
    assert Node.read({"partition-id": 3, "num-partitions": 10, "gpu": "a"}) == Node(None, 3, None, None)


@pytest.mark.parametrize(("key", "field"), [("data-path", "data"), ("state-dir", "state")])
def test_a_path_may_begin_with_the_home_of_the_user(key, field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    assert getattr(Node.read({"name": "a", key: "~/x"}), field) == Path("/home/alice/x")


def test_a_client_that_does_not_say_who_it_is_is_refused():
    with pytest.raises(ConfigError, match=r'a client must say who it is.*Use name="clinic-a"'):
        Node.read({"data-path": "/own"})


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("name", 3, "str"),
        ("name", True, "str"),
        ("partition-id", "0", "int"),
        ("partition-id", 0.0, "int"),
        ("partition-id", True, "int"),
        ("data-path", 1, "str"),
        ("state-dir", False, "str"),
    ],
)
def test_a_value_of_another_type_is_named(key, value, kind):
    with pytest.raises(ConfigError, match=f"node-config {key}={value}: must be a {kind}"):
        Node.read({"name": "a", key: value})


def test_everything_wrong_with_a_node_is_reported_at_once():
    with pytest.raises(ConfigError, match="must be a") as caught:
        Node.read({"name": 3, "data-path": 4, "state-dir": 5})
    assert [p.key for p in caught.value.problems] == [
        "node-config name",
        "node-config data-path",
        "node-config state-dir",
    ]


# --- who a node is -------------------------------------------------------------------------------------


def identity(overrides, **node):
    return Node(**node).identity(compose(overrides))


def test_a_partition_is_the_client_of_that_number():
    assert identity(["clients=4"], partition=3) == "3"


def test_where_clients_have_names_a_partition_is_the_one_of_that_place():
    assert identity(["clients=2", "names=[clinic-a,clinic-b]"], partition=1) == "clinic-b"


def test_a_name_of_the_experiment_is_that_client():
    assert identity(["clients=2", "names=[clinic-a,clinic-b]"], name="clinic-b") == "clinic-b"


def test_a_name_comes_before_a_partition():
    assert identity(["clients=2", "names=[clinic-a,clinic-b]"], name="clinic-b", partition=0) == "clinic-b"


@pytest.mark.parametrize("name", ["clinic-c", "", "Clinic-a", "0"])
def test_a_name_that_the_experiment_does_not_know_is_refused_with_those_it_knows(name):
    with pytest.raises(ConfigError, match=f"node-config name={name}: no client.*clinic-a, clinic-b"):
        identity(["clients=2", "names=[clinic-a,clinic-b]"], name=name)


@pytest.mark.parametrize("partition", [-1, 4, 10**9])
def test_a_partition_beyond_the_clients_is_refused(partition):
    with pytest.raises(ConfigError, match=f"partition-id={partition}: no client of the experiment. Use 0 to 3"):
        identity(["clients=4"], partition=partition)


# --- the client ----------------------------------------------------------------------------------------


def test_a_client_is_built_from_its_node_s_config(shard, tmp_path):
    assert client(USUAL, partition_id=2, data_path=shard, state_dir=tmp_path).identity == "2"


def test_a_client_opens_its_own_examples(shard, tmp_path):
    assert len(client(USUAL, partition_id=2, data_path=shard, state_dir=tmp_path).shard()) == 40


def test_a_client_s_files_lie_in_its_owner_s_folder_one_for_each_run(shard, tmp_path):
    built = client(USUAL, partition_id=2, data_path=shard, state_dir=tmp_path)
    assert built.state.folder == tmp_path / "runs" / "7"


def test_a_client_s_ledger_outlives_the_run(shard, tmp_path):
    built = client(PRIVATE, partition_id=2, data_path=shard, state_dir=tmp_path)
    assert built.privacy.ledger == tmp_path / "ledger.sqlite"


def test_outside_of_a_simulation_a_client_needs_a_place_for_its_files(shard):
    with pytest.raises(ConfigError, match=r"node-config state-dir.*names no place.*Start the SuperNode with"):
        client(USUAL, partition_id=2, data_path=shard)


def test_a_client_without_a_place_leaves_no_file(shard, tmp_path):
    with pytest.raises(ConfigError, match="names no place"):
        client(USUAL, partition_id=2, data_path=shard)
    assert not home().exists()


def test_noise_that_others_can_compute_is_refused_under_dp(shard, tmp_path):
    with pytest.raises(ConfigError, match=r"privacy.noise=seeded: .*protects nobody.*Use privacy.noise=discrete"):
        client([*PRIVATE, "privacy.noise=seeded"], partition_id=2, data_path=shard, state_dir=tmp_path)


def test_noise_of_the_operating_system_is_let_in(shard, tmp_path):
    built = client(PRIVATE, partition_id=2, data_path=shard, state_dir=tmp_path)
    assert type(built.privacy.random).__name__ == "SecureRandom"


@pytest.mark.parametrize("override", ["model._target_=os.system", "privacy.ledger=/tmp", "+x=1", "model=../../evil"])
def test_an_override_that_may_not_cross_a_network_is_refused(override, shard, tmp_path):
    with pytest.raises(ConfigError, match="run-config overrides"):
        client([*USUAL, override], partition_id=2, data_path=shard, state_dir=tmp_path)


def test_a_run_without_overrides_is_refused(shard, tmp_path):
    node = {"partition-id": 2, "data-path": str(shard), "state-dir": str(tmp_path)}
    with pytest.raises(ConfigError, match="must be a JSON list of texts"):
        client_of(Context(7, 1, node, RecordDict(), {}))


def test_a_path_that_came_with_the_run_is_not_opened(tmp_path, monkeypatch):
    """Neither one in an override, nor one in a config of the bundle that an override chooses."""
    (tmp_path / "server.csv").write_text("age,sick\n1,no\n2,yes\n3,no\n4,yes\n")
    app = make_app(tmp_path / "clinics").folder
    choice = f"_target_: fedq.data.csv\npath: {tmp_path / 'server.csv'}\ntarget: sick\n"
    (app / "conf" / "data" / "theirs.yaml").write_text(choice)
    monkeypatch.syspath_prepend(str(app))
    with pytest.raises(ConfigError, match="a path that came over the network is not opened"):
        client([*USUAL, "data=theirs", "model=linear"], partition_id=2, state_dir=tmp_path / "state")
    with pytest.raises(ConfigError, match="an argument of the app's own code"):
        client([*USUAL, f"data.path={tmp_path / 'server.csv'}"], partition_id=2, state_dir=tmp_path / "state")


def test_files_lie_in_the_folder_that_the_environment_names(tmp_path):
    assert home() == tmp_path / "home"


def test_without_the_environment_they_lie_with_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDQ_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".fedq"
