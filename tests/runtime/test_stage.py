"""The bundle that travels: what of a command line becomes a file of it, what goes beside it, and what may not go."""

import os
import tomllib

import pytest
import yaml

from fedq.app.bundle import is_app
from fedq.config import ConfigError, compose, identity, network
from fedq.new.app import make_app
from fedq.runtime.stage import app_here, run_config, stage

pytestmark = pytest.mark.integration

MODULE = """
from torch import nn


def net(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """An app directory as `fedq new` makes it, in which fedq is started."""
    folder = make_app(tmp_path / "clinics").folder
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder that is no app, in which fedq is started."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def staged(overrides, folder, *, app=None):
    config = compose(overrides, overlay=None if app is None else app / "conf")
    return config, stage(overrides, config, app=app, into=folder / "scratch")


def there(bundle):
    """The experiment as another machine composes it."""
    conf = bundle.folder / "conf"
    return compose(bundle.overrides, overlay=conf if conf.is_dir() else None)


def project(bundle):
    return tomllib.loads((bundle.folder / "pyproject.toml").read_text())


# --- without an app ------------------------------------------------------------------------------------


def test_where_there_is_no_app_a_bundle_is_made_that_flower_takes_for_fedq_s(empty, tmp_path):
    _, bundle = staged(["rounds=3"], tmp_path)
    assert is_app(bundle.folder)


def test_choices_and_values_go_beside_the_bundle(empty, tmp_path):
    _, bundle = staged(["rounds=3", "codec=int8", "privacy=off"], tmp_path)
    assert bundle.overrides == ["rounds=3", "codec=int8", "privacy=off"]


def test_open_keys_become_a_file_of_the_bundle(empty, tmp_path):
    _, bundle = staged(["model.hidden=[7,5]", "rounds=3"], tmp_path)
    written = yaml.safe_load((bundle.folder / "conf" / "model" / "staged.yaml").read_text())
    assert written["hidden"] == [7, 5]
    assert bundle.overrides == ["rounds=3", "model=staged"]


def test_the_choice_of_a_group_of_which_a_key_was_set_goes_into_the_file_too(empty, tmp_path):
    config, bundle = staged(["model=mlp", "model.hidden=[7]"], tmp_path)
    assert bundle.overrides == ["model=staged"]
    assert there(bundle).model == config.model


def test_a_model_and_a_loader_are_staged_each_in_its_group(empty, tmp_path):
    _, bundle = staged(["model.hidden=[7]", "data._target_=fedq.data.digits"], tmp_path)
    assert bundle.overrides == ["model=staged", "data=staged"]
    assert (bundle.folder / "conf" / "data" / "staged.yaml").is_file()


def test_a_callable_named_on_the_command_line_travels_as_a_file_and_never_as_an_override(empty, tmp_path):
    _, bundle = staged(["model._target_=torch.nn.Linear", "model.in_features=64", "model.out_features=10"], tmp_path)
    assert network.check(bundle.overrides) == bundle.overrides
    assert there(bundle).model == {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=demo", "rounds=3"],
        ["model.hidden=[7]", "experiment=demo", "privacy=off"],
        ["data=csv", "data.path=x.csv", "data.target=y", "data.classes=[no,yes]"],
        ["train.optimizer_options.momentum=0.9", "strategy.server_options.momentum=0.5"],
        ["runtime=deployment", "runtime.connection=mine", "names=[a,b]", "clients=2"],
    ],
    ids=lambda o: " ".join(o) or "nothing",
)
def test_the_other_machines_compose_the_same_experiment(overrides, empty, tmp_path):
    config, bundle = staged(overrides, tmp_path)
    assert identity(there(bundle)) == identity(config)


def test_the_connection_stays_here(empty, tmp_path):
    _, bundle = staged(["runtime=deployment", "runtime.connection=mine"], tmp_path)
    assert bundle.overrides == ["runtime=deployment"]


def test_a_made_bundle_says_that_its_run_is_followed(empty, tmp_path):
    _, bundle = staged([], tmp_path)
    assert project(bundle)["tool"]["flwr"]["app"]["config"] == {"overrides": "[]", "events": True}


@pytest.mark.parametrize("override", ["hydra.searchpath=[file:///etc]", "~experiment", "name=${oc.env:HOME}"])
def test_an_override_that_may_not_cross_a_network_is_refused(override, empty, tmp_path):
    with pytest.raises(ConfigError, match="only choices among what the bundle holds"):
        stage([override], compose(), app=None, into=tmp_path / "scratch")


def test_every_override_that_may_not_travel_is_reported_before_anything_is_written(empty, tmp_path):
    into = tmp_path / "scratch"
    with pytest.raises(ConfigError, match="adds or deletes") as caught:
        stage(["+x=1", "~model", "rounds=2"], compose(), app=None, into=into)
    assert [p.value for p in caught.value.problems] == ["+x=1", "~model"]
    assert not into.exists()


def test_the_size_is_that_of_the_file_that_flower_makes(empty, tmp_path):
    from flwr.cli.build import build_fab_from_disk

    _, bundle = staged(["model.hidden=[7]"], tmp_path)
    assert bundle.size == len(build_fab_from_disk(bundle.folder))


# --- choices and code of the user's own ----------------------------------------------------------------


def test_choices_of_one_s_own_travel_where_there_is_no_app(empty, tmp_path):
    (empty / "conf" / "model").mkdir(parents=True)
    (empty / "conf" / "model" / "wide.yaml").write_text(
        "_target_: torch.nn.Linear\nin_features: 64\nout_features: 10\n"
    )
    config = compose(["model=wide"], overlay=empty / "conf")
    bundle = stage(["model=wide"], config, app=None, into=tmp_path / "scratch")
    assert there(bundle).model["in_features"] == 64


def test_code_that_the_bundle_does_not_hold_is_refused(empty, tmp_path, monkeypatch):
    (empty / "loose_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(empty))
    with pytest.raises(ConfigError, match=r"loose_nets\.py is in this folder but not in the bundle"):
        staged(["model._target_=loose_nets.net"], tmp_path)


def test_a_loose_package_is_refused_as_a_loose_module_is(empty, tmp_path, monkeypatch):
    (empty / "loose_package").mkdir()
    (empty / "loose_package" / "__init__.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(empty))
    with pytest.raises(ConfigError, match="no client could import it"):
        staged(["data._target_=loose_package.net"], tmp_path)


def test_code_beside_an_app_that_its_bundle_leaves_out_is_refused(app, tmp_path, monkeypatch):
    (app / "loose_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(app))
    with pytest.raises(ConfigError, match="add it to its fab-include"):
        staged(["model._target_=loose_nets.net"], tmp_path, app=app)


def test_installed_code_needs_no_place_in_the_bundle(empty, tmp_path):
    _, bundle = staged(["model._target_=torch.nn.Linear", "model.in_features=64", "model.out_features=10"], tmp_path)
    assert not list(bundle.folder.rglob("*.py"))


# --- an app --------------------------------------------------------------------------------------------


def test_an_app_travels_with_its_code_and_its_choices(app, tmp_path):
    _, bundle = staged([], tmp_path, app=app)
    names = {str(p.relative_to(bundle.folder)) for p in bundle.folder.rglob("*") if p.is_file()}
    assert {"clinics/model.py", "clinics/data.py", "conf/model/mine.yaml", "conf/experiment/default.yaml"} <= names


def test_what_an_app_does_not_name_for_its_bundle_stays_here(app, tmp_path):
    (app / "outputs").mkdir()
    (app / "outputs" / "result.json").write_text("{}")
    (app / "patients.csv").write_text("age\n50\n")
    _, bundle = staged([], tmp_path, app=app)
    assert not [p for p in bundle.folder.rglob("*") if p.name in ("result.json", "patients.csv")]


def test_the_other_machines_compose_the_app_s_experiment(app, tmp_path):
    config, bundle = staged(["rounds=2", "model.hidden=12"], tmp_path, app=app)
    assert identity(there(bundle)) == identity(config)


def test_staging_leaves_the_app_as_it_was(app, tmp_path):
    before = {p: p.read_bytes() for p in app.rglob("*") if p.is_file()}
    staged(["model.hidden=12"], tmp_path, app=app)
    assert {p: p.read_bytes() for p in app.rglob("*") if p.is_file()} == before


def test_an_app_keeps_its_name_and_publisher(app, tmp_path):
    _, bundle = staged([], tmp_path, app=app)
    told = project(bundle)
    assert (told["project"]["name"], told["tool"]["flwr"]["app"]["publisher"]) == ("clinics", "mine")


def test_a_bundle_over_10_mb_is_refused(app, tmp_path):
    (app / "clinics" / "weights.py").write_bytes(b"#" + os.urandom(11_000_000).hex().encode())
    with pytest.raises(ConfigError, match=r"Flower cannot bundle it.*(?i:size|10)"):
        staged([], tmp_path, app=app)


def test_a_project_name_that_flower_refuses_is_reported(app, tmp_path):
    path = app / "pyproject.toml"
    path.write_text(path.read_text().replace('name = "clinics"', 'name = "my_app"'))
    with pytest.raises(ConfigError, match=r"Flower cannot bundle it.*name.*Fix its pyproject\.toml"):
        staged([], tmp_path, app=app)


def test_a_pattern_that_matches_no_file_is_reported(app, tmp_path):
    path = app / "pyproject.toml"
    path.write_text(path.read_text().replace('"README.md"', '"NOSUCH.md"'))
    with pytest.raises(ConfigError, match="Flower cannot bundle it"):
        staged([], tmp_path, app=app)


def test_the_app_here_is_the_folder_in_which_fedq_is_started(app):
    assert app_here() == app


def test_a_folder_without_an_app_is_no_app(empty):
    assert app_here() is None


def test_a_flower_app_of_other_components_is_no_app_of_fedq_s(app):
    path = app / "pyproject.toml"
    path.write_text(path.read_text().replace("fedq.app:server", "clinics.server:app"))
    assert app_here() is None


# --- the run's config ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [[], ["rounds=3"], ['model="mlp"', "names=[a,b]", "name=größe"]])
def test_the_run_s_config_file_holds_the_overrides_as_one_text(overrides):
    told = tomllib.loads(run_config(overrides).decode())
    assert list(told) == ["overrides"]
    assert network.read(told["overrides"]) == overrides


def test_a_run_s_config_file_is_not_written_with_what_may_not_travel():
    with pytest.raises(ConfigError, match="names code to run"):
        run_config(["model._target_=os.system"])


def test_what_an_experiment_sets_for_its_own_model_is_not_merged_into_a_staged_one(tmp_path):
    words = ["experiment=demo", "model._target_=torch.nn.Linear", "model.in_features=64", "model.out_features=10"]
    config = compose(words)
    bundle = stage(words, config, app=None, into=tmp_path)
    there = compose(bundle.overrides, overlay=bundle.folder / "conf")
    assert there.model == {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10}
