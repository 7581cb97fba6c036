"""Which options go together where client-level DP is on, each refusal with its fix."""

import pytest

from fedq.config import problems, rules
from fedq.config.client_level import epsilon_budget, protects_clients, protects_examples
from fedq.experiment.client_level import client_level_plan
from tests.quick import compose


def found(*overrides):
    return {p.key: p for p in problems(compose(overrides))}


@pytest.mark.parametrize(
    ("unit", "examples", "clients", "budget"),
    [("off", False, False, None), ("example", True, False, 3), ("client", False, True, 5), ("both", True, True, 3)],
)
def test_each_unit_is_one_choice(unit, examples, clients, budget):
    own = ["privacy.target_epsilon=3"] * examples + ["privacy.client.target_epsilon=5"] * clients
    config = compose([f"privacy={unit}", *own])
    assert problems(config) == []
    assert (protects_examples(config), protects_clients(config)) == (examples, clients)
    assert epsilon_budget(config) == budget


CLIENT = ["privacy=client"]
POISSON = [*CLIENT, "privacy.client.sampling=poisson", "fraction=0.5"]
REFUSED = {
    "an epsilon of 0": ([*CLIENT, "privacy.client.target_epsilon=0"], "privacy.client.target_epsilon"),
    "a negative delta": ([*CLIENT, "privacy.client.target_delta=-1"], "privacy.client.target_delta"),
    "a delta for no one": (
        [*CLIENT, "clients=100", "privacy.client.target_delta=0.02"],
        "privacy.client.target_delta",
    ),
    "no noise": ([*CLIENT, "privacy.client.noise_multiplier=0"], "privacy.client.noise_multiplier"),
    "no clip": ([*CLIENT, "privacy.client.clip_norm=0"], "privacy.client.clip_norm"),
    "an endless clip": ([*CLIENT, "privacy.client.clip_norm=inf"], "privacy.client.clip_norm"),
    "a quantile of 1": (
        [*CLIENT, "privacy.client.clipping=adaptive", "privacy.client.quantile=1"],
        "privacy.client.quantile",
    ),
    "an unknown clipping": ([*CLIENT, "privacy.client.clipping=soft"], "privacy.client.clipping"),
    "an unknown sampling": ([*CLIENT, "privacy.client.sampling=uniform"], "privacy.client.sampling"),
    "neither budget nor noise": ([*CLIENT, "privacy.client.target_epsilon=null"], "privacy.client.target_epsilon"),
    "rounds that may be skipped": ([*CLIENT, "strategy.min_clients=2"], "strategy.min_clients"),
    "secret cohorts of all": ([*POISSON, "fraction=1"], "privacy.client.sampling"),
    "secret cohorts and examples": ([*POISSON, "privacy=both"][1:], "privacy.client.sampling"),
    "secret cohorts and changes": ([*POISSON, "downlink.kind=delta", "downlink.name=int8"], "downlink.kind"),
    "changes": ([*CLIENT, "downlink.kind=delta", "downlink.name=int8"], "downlink.kind"),
    "changes beside both": (["privacy=both", "downlink.kind=delta", "downlink.name=int8"], "downlink.kind"),
    "a quantile of a fixed clip": ([*CLIENT, "privacy.client.quantile=0.3"], "privacy.client.quantile"),
    "an option of examples": ([*CLIENT, "privacy.clip_norm=2"], "privacy.clip_norm"),
    "a ledger of nothing": (["privacy=off", "privacy.ledger=here"], "privacy.ledger"),
    "an option of clients": (["privacy=example", "privacy.client.clip_norm=2"], "privacy.client.clip_norm"),
    "an option of nobody": (["privacy.client.clip_norm=2"], "privacy.client.clip_norm"),
    "a weight": ([*CLIENT, "strategy.weighting=examples"], "strategy.weighting"),
    "seeded noise in a deployment": ([*CLIENT, "runtime=deployment", "privacy.noise=seeded"], "privacy.noise"),
}


@pytest.mark.parametrize(("overrides", "key"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_with_its_mend(overrides, key):
    problem = found(*overrides)[key]
    assert problem.rule
    assert problem.fix


def test_why_changes_are_refused_is_said():
    (problem,) = found(*CLIENT, "downlink.kind=delta", "downlink.name=int8").values()
    assert "could see from its message whether another client's update" in problem.rule
    assert problem.fix == "Use downlink.kind=weights"


def test_changes_may_be_sent_where_examples_are_protected():
    """Whether a client answers is a function of public numbers and of what it has spent."""
    assert found("privacy=example", "downlink.kind=delta", "downlink.name=int8") == {}


def test_rules_of_examples_do_not_bind_where_none_is_protected():
    assert found(*CLIENT, "train.clip_grad=1", "data.nominal_examples=null") == {}
    assert found(*CLIENT, "quant=int8", "quant.activations=observed") == {}
    assert set(found("privacy=both", "quant=int8", "quant.activations=observed")) == {"quant.activations"}


def test_client_level_options_are_part_of_the_identity_of_client_level_runs_alone():
    assert "client" not in rules.identity(compose(["privacy=example"]))["privacy"]
    plain = rules.config_hash(compose(CLIENT))
    assert rules.config_hash(compose([*CLIENT, "privacy.client.clip_norm=2"])) != plain


def test_noise_is_for_the_most_rounds_that_count_against_one_client():
    """10 rounds of 4 among 20 clients: each is dealt in 2, and a secret draw may take one into all 10."""
    words = [*CLIENT, "clients=20", "rounds=10", "fraction=0.2"]
    dealt = client_level_plan(compose(words))
    drawn = client_level_plan(compose([*words, "privacy.client.sampling=poisson"]))
    assert (dealt.charges, dealt.sample_rate, dealt.cohort) == (2, 1.0, 4)
    assert (drawn.charges, drawn.sample_rate, drawn.cohort) == (10, 0.2, 4)
    for plan in (dealt, drawn):
        assert 0.99 * 8 < plan.epsilon(plan.charges) <= 8


def test_noise_that_costs_more_than_the_budget_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="costs a client epsilon 1212 in 20 rounds, more than the target 8"):
        client_level_plan(compose([*CLIENT, "privacy.client.noise_multiplier=0.1"]))


def test_where_whole_clients_are_not_protected_there_is_no_plan():
    assert client_level_plan(compose(["privacy=example"])) is None
