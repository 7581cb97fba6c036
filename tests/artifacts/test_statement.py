"""The statement of a run whose server sees no ledger: it claims no more than public numbers say."""

import json

import pytest

from fedq.app.serving import serve
from fedq.artifacts.run_artifacts import epsilon_after
from fedq.artifacts.statement import statement_of
from fedq.config.config_file import write_config
from fedq.core.wording import spent
from fedq.experiment import build
from fedq.results import read_result
from fedq.runtime.local import in_process
from tests.quick import compose

pytestmark = pytest.mark.integration

WORDS = ["clients=2", "rounds=2", "model.hidden=[8]", "quant=off", "privacy=example", "privacy.target_epsilon=8"]
WORDS += ["privacy.accountant=rdp", "train.epochs=null", "train.steps=2"]


def deployed(folder, *overrides):
    """A run folder as a deployment's server leaves it: no client's file is in it."""
    config = compose([*WORDS, *overrides])
    experiment = build(config)
    strategy = experiment.strategy()
    folder.mkdir()
    write_config(config, folder / "config.yaml")
    link = in_process(experiment, strategy, folder.parent / f"{folder.name}-clients")
    serve(experiment, strategy, link, folder=folder, watch=lambda row: None, clients=None)
    return experiment, folder


@pytest.fixture(scope="module")
def afar(tmp_path_factory):
    return deployed(tmp_path_factory.mktemp("runs") / "run", "evaluate=dp", "privacy.evaluation_epsilon=1")


@pytest.fixture(scope="module")
def said(afar):
    return statement_of(afar[1])


ALONE = "this run alone, by public numbers; what clients spent before is not included"


def test_its_epsilon_is_said_to_be_that_of_this_run_alone(afar, said):
    experiment, _ = afar
    cost = epsilon_after(experiment, 2, counted=True)
    assert said["epsilon"] == f"{spent(cost)} at delta 1e-05, {ALONE}"
    assert "whole ledger" not in json.dumps(said)


def test_its_mechanism_is_the_plan_s(said):
    assert said["mechanism"].startswith(
        "Poisson-subsampled discrete Gaussian on clipped per-example gradients, in exact"
    )
    assert "discrete Laplace noise on counts" in said["mechanism"]


def test_a_float_gaussian_is_called_one(tmp_path):
    _, folder = deployed(tmp_path / "floats", "privacy.noise=gaussian")
    mechanism = statement_of(folder)["mechanism"]
    assert mechanism.startswith("Poisson-subsampled Gaussian")
    assert "Laplace" not in mechanism


def test_it_composes_this_run_s_rounds_and_no_ledgers_rows(said):
    assert "over the rounds of this run" in said["composition"]
    assert "rows" not in said["composition"]


def test_an_owner_s_own_budget_is_said_to_be_another_matter(said):
    assert said["budget"] == "8 for every client; an owner's own may be stricter, and is over all runs"


def test_the_result_says_the_same(afar):
    result = read_result(afar[1])
    assert result.epsilon_of == "run"
    assert ALONE in result.facts()["privacy"]


def test_a_result_of_before_that_does_not_say_is_taken_for_the_run_alone(afar, tmp_path):
    _, folder = afar
    values = json.loads((folder / "result.json").read_text())
    del values["epsilon_of"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert ALONE in statement_of(tmp_path)["epsilon"]
