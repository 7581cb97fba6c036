import pytest

from fedq.config import ConfigError, compose, conf_folder
from fedq.config.compose import known_keys
from fedq.config.schema import GROUPS


def refused(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return {p.key: p for p in caught.value.problems}


def test_the_demo_is_what_its_file_says():
    config = compose(["experiment=demo"])
    assert (config.rounds, config.clients, config.name) == (100, 10, "demo")
    assert (config.quant.name, config.privacy.unit, config.codec.name) == ("int8", "example", "int8")


def test_the_command_line_wins_over_an_experiment():
    config = compose(["experiment=demo", "privacy=off", "rounds=3", "codec=float32"])
    assert (config.privacy.unit, config.rounds, config.codec.name) == ("off", 3, "float32")


def test_a_mistyped_key_is_named_with_its_neighbour():
    assert "Did you mean fraction?" in str(refused("fractoin=1")["fractoin"])


def test_a_key_without_its_group_finds_the_group():
    assert "privacy.target_epsilon" in refused("target_epsilon=1")["target_epsilon"].fix


def test_an_unknown_choice_lists_the_choices():
    problem = refused("partition=nosuch")["partition"]
    assert "by_column, dirichlet, iid" in problem.rule


def test_every_mistake_is_reported_at_once():
    found = refused("nosuch.key=1", "rounds=abc", "privacy=nosuch", "codec.blok=3")
    assert set(found) == {"nosuch.key", "rounds", "privacy", "codec.blok"}
    assert "codec.block" in found["codec.blok"].fix


def test_what_must_be_set_is_asked_for():
    assert set(refused("data=csv")) == {"data.path", "data.target"}


def test_a_user_s_callable_takes_new_arguments_without_a_plus():
    config = compose(["model._target_=my.Net", "model.width=3", "train.optimizer_options.momentum=0.9"])
    assert config.model == {"_target_": "my.Net", "width": 3}
    assert config.train.optimizer_options == {"momentum": 0.9}


def test_a_user_s_callable_does_not_inherit_the_arguments_of_what_it_replaces():
    assert compose(["data=fashion_mnist", "data._target_=my.load"]).data == {"_target_": "my.load"}


def test_a_folder_of_the_user_s_own_adds_choices(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my.Net\ndepth: 2\n")
    assert compose(["model=mine"], overlay=tmp_path).model == {"_target_": "my.Net", "depth": 2}


def own_default(folder):
    (folder / "experiment").mkdir()
    (folder / "experiment" / "default.yaml").write_text("# @package _global_\nrounds: 7\n")


def test_an_overlay_s_default_experiment_holds_where_none_is_named(tmp_path):
    own_default(tmp_path)
    assert compose([], overlay=tmp_path).rounds == 7
    assert compose(["clients=3"], overlay=tmp_path).rounds == 7
    assert compose(["rounds=2"], overlay=tmp_path).rounds == 2
    assert compose(["experiment=default"], overlay=tmp_path).rounds == 7


def test_an_overlay_s_default_experiment_gives_way_to_a_named_one(tmp_path):
    own_default(tmp_path)
    assert compose(["experiment=demo"], overlay=tmp_path).rounds == 100
    assert compose(["~experiment"], overlay=tmp_path).rounds == 20


def test_a_group_that_is_added_twice_is_refused_with_the_plain_form():
    assert "Use experiment=demo" in str(refused("+experiment=demo")["experiment"])


def test_a_mistyped_experiment_is_refused_beside_a_default_one(tmp_path):
    own_default(tmp_path)
    with pytest.raises(ConfigError, match=r"experiment=dmo: no such choice; there are .*default, demo"):
        compose(["experiment=dmo"], overlay=tmp_path)


def test_without_an_overlay_no_experiment_is_the_default():
    with pytest.raises(ConfigError, match="experiment=default: no such choice"):
        compose(["experiment=default"])


CHOICES = {group: [path.stem for path in sorted((conf_folder() / group).glob("*.yaml"))] for group in GROUPS}


@pytest.mark.parametrize("experiment", CHOICES["experiment"])
def test_every_experiment_composes(experiment):
    assert compose([f"experiment={experiment}"]).name


@pytest.mark.parametrize("number", range(max(len(choices) for choices in CHOICES.values())))
def test_every_choice_composes(number):
    """The first of each group, the second of each group, ...: a config takes a fifth of a second."""
    chosen = {group: choices[number % len(choices)] for group, choices in CHOICES.items() if group != "experiment"}
    needed = ["data.path=x.csv", "data.target=y"] if chosen["data"] == "csv" else []
    config = compose([*(f"{group}={choice}" for group, choice in chosen.items()), *needed])
    for group in ("quant", "codec", "runtime", "partition"):
        assert getattr(config, group).name == chosen[group]


def test_every_key_has_a_meaning():
    assert all(len(meaning) > 10 for meaning in known_keys().values())
    assert {"rounds", "clients", "fraction", "seed", "name", "quant.activations"} <= set(known_keys())
