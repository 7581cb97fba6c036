"""A client on its owner's machine: what the owner says of it, and what is refused before any data are opened."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from fedq.app import client as app
from fedq.app.bundle import bundle_digest
from fedq.app.node import _digest, client_of, home, note
from fedq.app.node_config import Node
from fedq.config import ConfigError
from fedq.data import write_shard
from fedq.experiment import build
from fedq.experiment.digests import model_digest
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.new.app import make_app
from fedq.privacy import Declined, Ledger, tip_in
from tests.privacy.ledgers import SPEND
from tests.quick import compose

pytestmark = pytest.mark.integration

USUAL = ["clients=4", "quant=off", "privacy=off", "partition=iid"]  # what may cross a network
PRIVATE = ["clients=4", "quant=off", "privacy=example", "privacy.noise_multiplier=1", "partition=iid"]


@pytest.fixture(autouse=True)
def _flower(tmp_path, monkeypatch):
    flower.enter()
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    whole = build(compose(USUAL))
    path = tmp_path_factory.mktemp("own") / "own.shard.npz"
    write_shard(path, whole.dataset.train[:40], whole.dataset)
    return path


def context(overrides, **node_config):
    config = {key.replace("_", "-"): str(v) if isinstance(v, Path) else v for key, v in node_config.items()}
    return Context(7, 1, config, RecordDict(), {"overrides": json.dumps(overrides)})


def client(overrides, **node_config):
    return client_of(context(overrides, **node_config))


def greeted(overrides, **node_config):
    """What the app of this node answers to a handshake."""
    message = Message(wire.empty(), dst_node_id=1, message_type=wire.HELLO)
    return wire.read_hello(app(message, context(overrides, **node_config)).content)


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
    with pytest.raises(ConfigError, match=r'a client needs a name.*Use name="clinic-a"'):
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
    with pytest.raises(ConfigError, match=r"node-config state-dir.*needs a folder for them.*Start the SuperNode with"):
        client(USUAL, partition_id=2, data_path=shard)


def test_a_client_without_a_place_leaves_no_file(shard, tmp_path):
    with pytest.raises(ConfigError, match="needs a folder for them"):
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


# --- what an owner accepts -----------------------------------------------------------------------------

POLICY = 'unit = "example"\nmax_epsilon = {epsilon}\nmax_delta = 1e-5\n'


EPSILON_3 = POLICY.format(epsilon=3)


def policy_file(tmp_path, text=EPSILON_3):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


BUDGET_8 = ["clients=4", "quant=off", "privacy=example", "privacy.target_epsilon=8", "partition=iid"]


def test_a_request_weaker_than_the_policy_is_declined_before_any_data_is_opened(shard, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("fedq.app.node.build", lambda *args, **kwargs: opened.append(args))
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "state", "policy": policy_file(tmp_path)}
    for words, why in ((BUDGET_8, "epsilon 8 of at most 3"), (USUAL, "privacy=off where at least example")):
        with pytest.raises(Declined, match=why):
            client(words, **node)
        assert greeted(words, **node) == wire.Refusal(0, "policy", "2")
    assert opened == []
    declined = (tmp_path / "state" / "declined.log").read_text().splitlines()
    assert len(declined) == 2
    assert "epsilon 8 of at most 3" in declined[0]


def test_the_stricter_side_wins(shard, tmp_path):
    """An owner's own budget of 3 makes its client add the noise of 3 in a run of 8, which its policy then accepts."""
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "policy": policy_file(tmp_path)}
    stricter = client(BUDGET_8, epsilon=3.0, **node).privacy.plan
    weaker = client(BUDGET_8, partition_id=2, data_path=shard, state_dir=tmp_path, epsilon=20.0).privacy.plan
    assert (stricter.target_epsilon, weaker.target_epsilon) == (3.0, 8.0)
    assert stricter.noise_multiplier > 1.5 * weaker.noise_multiplier


def test_a_run_that_names_its_noise_and_no_budget_is_weighed_by_what_it_costs(shard, tmp_path):
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "policy": policy_file(tmp_path)}
    public = ["rounds=2", "train.steps=1", "train.epochs=null", "privacy.target_epsilon=null"]
    words = ["clients=4", "quant=off", "privacy=example", "partition=iid", *public]
    assert client([*words, "privacy.noise_multiplier=20"], **node).privacy.plan.noise_multiplier == 20
    with pytest.raises(Declined, match=r"epsilon \d.* of at most 3"):
        client([*words, "privacy.noise_multiplier=0.3"], **node)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("limit", "words", "why"),
    [
        ("max_rounds = 4", ["rounds=10"], "10 rounds of at most 4"),
        ("max_steps = 4", ["train.steps=5", "train.epochs=null"], "5 steps in a round of at most 4"),
        ("max_steps = 4", ["train.epochs=1"], "an unsaid number of steps in a round of at most 4"),
    ],
)
def test_a_run_that_asks_for_more_work_than_its_owner_allows_is_declined(shard, tmp_path, limit, words, why):
    """Rounds and steps were once whatever the server chose."""
    policy = policy_file(tmp_path, f'unit = "off"\nmax_epsilon = inf\nmax_delta = 1\n{limit}\n')
    with pytest.raises(Declined, match=why):
        client([*USUAL, *words], partition_id=2, data_path=shard, state_dir=tmp_path / "s", policy=policy)


def test_under_dp_rounds_are_those_of_one_client_and_steps_follow_from_public_numbers(shard, tmp_path):
    words = [*BUDGET_8, "rounds=10", "fraction=0.5", "privacy.sample_rate=0.25", "train.epochs=1"]
    for limit, fits in (
        ("max_rounds = 5\nmax_steps = 4\n", True),
        ("max_rounds = 4\n", False),
        ("max_steps = 3\n", False),
    ):
        node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "s"}
        policy = policy_file(tmp_path, POLICY.format(epsilon=8) + limit)
        if fits:
            assert client(words, policy=policy, **node).privacy.plan.steps == 4
        else:
            with pytest.raises(Declined, match=r"5 rounds of at most 4|4 steps in a round of at most 3"):
                client(words, policy=policy, **node)


@pytest.mark.parametrize("text", ["", "unit = ", POLICY.format(epsilon=0)])
def test_a_policy_that_cannot_be_read_refuses_and_never_falls_open(shard, tmp_path, text):
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "policy": policy_file(tmp_path, text)}
    with pytest.raises(Declined, match=r"policy: .*policy\.toml") as caught:
        client(BUDGET_8, epsilon=1.0, **node)
    assert caught.value.reason == "policy"


def test_data_outside_of_the_policy_s_folder_are_not_opened(shard, tmp_path):
    text = POLICY.format(epsilon=8) + f'data_path = "{tmp_path}"\n'
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "s", "policy": policy_file(tmp_path, text)}
    with pytest.raises(Declined, match="may be read"):
        client(BUDGET_8, **node)


def test_a_policy_may_name_the_code_it_has_reviewed(shard, tmp_path, monkeypatch):
    (tmp_path / "apps").mkdir()  # where Flower unpacks
    app = make_app(tmp_path / "apps" / "clinics").folder
    monkeypatch.syspath_prepend(str(app))
    words, digest = [*BUDGET_8, "model=mlp", "experiment=demo", "partition=iid"], bundle_digest(app)
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "s"}
    config = compose(words, overlay=app / "conf")
    reviewed = POLICY.format(epsilon=8) + f'bundles = ["{digest}"]\nmodels = ["{model_digest(config)[:16]}"]\n'
    built = client(words, policy=policy_file(tmp_path, reviewed), **node)
    assert built.privacy.bundle == digest
    (app / "conf" / "later.yaml").write_text("x: 1\n")
    _digest.cache_clear()
    with pytest.raises(Declined, match=f"the bundle {bundle_digest(app)}, which is not among"):
        client(words, policy=policy_file(tmp_path, reviewed), **node)


def test_the_tip_of_the_ledger_lies_where_the_policy_says(shard, tmp_path):
    text = POLICY.format(epsilon=8) + f'head = "{tmp_path / "elsewhere" / "head"}"\n'
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "policy": policy_file(tmp_path, text)}
    assert client(BUDGET_8, **node).privacy.tip == tmp_path / "elsewhere" / "head"


def test_the_tip_lies_in_the_folder_for_tips_unless_the_policy_names_a_file(shard, tmp_path):
    heads = tmp_path / "heads"
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "a", "head_dir": heads}
    head = client(BUDGET_8, **node).privacy.tip
    assert head == tip_in(heads, tmp_path / "a" / "ledger.sqlite")
    assert head.parent == heads
    assert head != client(BUDGET_8, **{**node, "state_dir": tmp_path / "b"}).privacy.tip  # no two ledgers share one
    text = POLICY.format(epsilon=8) + f'head = "{tmp_path / "elsewhere"}"\n'
    assert client(BUDGET_8, policy=policy_file(tmp_path, text), **node).privacy.tip == tmp_path / "elsewhere"


@pytest.mark.hostile
def test_a_ledger_that_is_put_back_with_its_folder_shows_against_the_head_in_the_other(shard, tmp_path):
    """Both files once lay in the state-dir by default, so that an older copy of that folder passed."""
    state, node = tmp_path / "state", {"partition_id": 2, "data_path": shard, "head_dir": tmp_path / "heads"}
    built = client(BUDGET_8, state_dir=state, **node).privacy
    ledger = Ledger(built.ledger, tip=built.tip)
    ledger.spend(replace(SPEND, data=built.data_name))
    shutil.copytree(state, tmp_path / "older")
    ledger.spend(replace(SPEND, data=built.data_name, round=2))
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "older", state)
    with pytest.raises(Declined, match="1 spends are missing"):
        client(BUDGET_8, state_dir=state, **node).check_account()


def test_an_owner_whose_tip_lies_beside_the_ledger_is_warned_on_the_terminal_and_once_in_the_log(
    shard, tmp_path, capfd
):
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path}
    for _ in range(2):
        built = client(BUDGET_8, **node)
        assert "warning: the ledger's tip lies beside the ledger" in capfd.readouterr().err
    log = (built.state.folder / "log.txt").read_text()
    assert log.count("the ledger's tip lies beside the ledger") == 1
    client(BUDGET_8, head_dir=tmp_path / "heads", **node)
    assert "head" not in capfd.readouterr().err


@pytest.mark.parametrize("limit", [{"epsilon": 0.1}, {"epsilon": 0.1, "delta": 1e-6}], ids=str)
@pytest.mark.parametrize("unit", ["off", "client"])
def test_a_run_that_the_ledger_would_not_count_is_beyond_any_budget(shard, tmp_path, monkeypatch, unit, limit):
    """A budget is the most that the data may ever spend: without noise of the client's own, nothing is spent in it."""
    opened = []
    monkeypatch.setattr("fedq.app.node.build", lambda *args, **kwargs: opened.append(args))
    words = ["clients=4", "quant=off", f"privacy={unit}", "partition=iid"]
    words += ["privacy.client.noise_multiplier=1"] if unit == "client" else []
    with pytest.raises(Declined, match=f"privacy={unit} this client adds no noise of its own") as caught:
        client(words, partition_id=2, data_path=shard, state_dir=tmp_path / "state", **limit)
    assert (caught.value.reason, caught.value.identity, opened) == ("budget", "2", [])
    assert greeted(words, partition_id=2, data_path=shard, state_dir=tmp_path / "state", **limit).reason == "budget"
    (line,) = (tmp_path / "state" / "declined.log").read_text().splitlines()
    assert "epsilon=0.1" in line


def test_what_the_account_turns_away_is_noted_in_the_state_dir(shard, tmp_path):
    """Where `fedq client status` reads it, whatever folder the run's own files lie in."""
    note(context(PRIVATE, state_dir=tmp_path / "state"), "hello: budget: epsilon would be 9.72 of 8")
    (line,) = (tmp_path / "state" / "declined.log").read_text().splitlines()
    assert "'run 7' hello: budget: epsilon would be 9.72 of 8; asked for [\"clients=4\"" in line


def test_a_budget_beside_a_policy_that_accepts_everything_still_holds(shard, tmp_path):
    policy = policy_file(tmp_path, 'unit = "off"\nmax_epsilon = inf\nmax_delta = 1\n')
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path / "state", "policy": policy}
    assert client(USUAL, **node).privacy is None
    with pytest.raises(Declined, match="budget: under privacy=off"):
        client(USUAL, epsilon=3.0, **node)


@pytest.mark.parametrize("value", [0, -1, "3", True, float("nan"), 1e9])
def test_a_budget_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=r"node-config epsilon=.*the most that this data may ever spend"):
        Node.read({"name": "a", "epsilon": value})


def test_a_run_without_a_budget_is_held_to_the_policy_s(shard, tmp_path):
    """It is weighed by what it says it will cost; a server that asks for more rounds than it said meets the guard."""
    public = ["rounds=2", "train.steps=1", "train.epochs=null", "privacy.target_epsilon=null"]
    words = ["clients=4", "quant=off", "privacy=example", "partition=iid", *public, "privacy.noise_multiplier=20"]
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "policy": policy_file(tmp_path)}
    assert client(words, **node).privacy.plan.target_epsilon == 3.0


def test_a_budget_is_counted_at_the_owner_s_delta(shard, tmp_path):
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path, "epsilon": 3.0}
    loose = [*BUDGET_8, "privacy.target_delta=1e-4"]
    assert client(loose, **node).privacy.plan.delta == 1e-5
    assert client(loose, delta=1e-7, **node).privacy.plan.delta == 1e-7
    assert client(loose, partition_id=2, data_path=shard, state_dir=tmp_path).privacy.plan.delta == 1e-4


def test_a_budget_that_no_noise_meets_is_a_refusal_for_lack_of_budget(shard, tmp_path):
    words = [*BUDGET_8, "evaluate=dp", "privacy.evaluation_epsilon=0.5"]
    with pytest.raises(Declined) as caught:
        client(words, partition_id=2, data_path=shard, state_dir=tmp_path, epsilon=0.5)
    assert (caught.value.reason, caught.value.identity) == ("budget", "2")


def test_float_noise_is_weaker_than_discrete_noise(shard, tmp_path):
    node = {"partition_id": 2, "data_path": shard, "state_dir": tmp_path}
    words = [*BUDGET_8, "privacy.noise=gaussian"]
    with pytest.raises(Declined, match=r"privacy\.noise=gaussian where at least discrete"):
        client(words, policy=policy_file(tmp_path, POLICY.format(epsilon=8)), **node)
    floats = POLICY.format(epsilon=8) + 'noise = "gaussian"\n'
    assert client(words, policy=policy_file(tmp_path, floats), **node).privacy.plan.noise == "gaussian"


def test_modules_that_a_bundle_brings_compiled_are_gone_before_it_is_weighed(shard, tmp_path, monkeypatch):
    (tmp_path / "apps").mkdir()
    app = make_app(tmp_path / "apps" / "clinics").folder
    planted = app / "clinics" / "__pycache__" / "model.cpython-311.pyc"
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(b"other code than the source says")
    monkeypatch.syspath_prepend(str(app))
    _digest.cache_clear()
    client([*USUAL, "experiment=demo", "privacy=off"], partition_id=2, data_path=shard, state_dir=tmp_path / "s")
    assert not planted.exists()
