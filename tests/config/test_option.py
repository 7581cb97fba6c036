"""How options are declared: bounds, conditions, former names, and what the help page says of them."""

import warnings

import pytest

from fedq.config import ConfigError, compose, problems, rules
from fedq.config.compose import _help, known_keys
from fedq.config.option import Declared, Interval, When, declared, former_names, shown
from fedq.config.schema import Config


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ("[1, 256]", [1, 256, 3.5], [0, 257, float("nan")]),
        ("(0, 1]", [1e-9, 1], [0, 1.0001]),
        ("(0, inf)", [5e-324, 1e308], [0, float("inf")]),
        (f"[0, {2**63 - 1}]", [2**63 - 1], [2**63, -1]),
    ],
)
def test_an_interval_holds_what_is_written(bounds, inside, outside):
    interval = Interval(bounds)
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == bounds


def test_a_default_keeps_to_its_own_declaration():
    for key, option in declared(Config).items():
        assert option.accepts(option.default), key
        assert option.default is None or option.bounds is None or option.default in option.bounds, key
        assert rules.value_of(Config(), key) == option.default


def test_every_condition_names_an_option_and_a_value_that_it_can_have():
    known = declared(Config)
    for key, option in known.items():
        for when in option.when:
            other = known[when.key]
            assert key != when.key
            assert all(other.accepts(value) for value in (*when.values, *when.unless)), (key, when)
            assert "{" not in when.rule("x") + when.hint()


def test_a_condition_is_said_as_on_the_command_line():
    assert str(When("runtime.name", ("ray", "deployment"))) == "runtime=ray|deployment"
    assert str(When("quant.sparsity", unless=(None,))) == "quant.sparsity set"
    assert When("runtime.name", ("ray",)).rule("local") == "runtime=local has no such option"
    assert When("runtime.name", ("ray",)).hint() == "Use runtime=ray"


def test_help_shows_each_option_with_default_choices_bounds_and_condition():
    page = _help()["template"]
    for key, option in declared(Config).items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"  {key}={shown(option.default)} ")]
        for part in (option.help, *map(str, option.choices), str(option.bounds or "")):
            assert part in line
    assert "in [1, inf); only with partition=dirichlet" in page
    assert "one of iid, dirichlet, by_column" in page
    assert not [key for key in former_names(Config) if f" {key}=" in page or key in known_keys()]


RENAMED = [
    ("privacy.client_target_epsilon=3", "privacy.client.target_epsilon=3", 3.0),
    ("privacy.client_sampling=deal", "privacy.client.sampling=cyclic", "cyclic"),
    ("codec.feedback=true", "codec.error_feedback=true", True),
    ("strategy.server=Adam", "strategy.server_optimizer=Adam", "Adam"),
]


@pytest.mark.parametrize(("former", "today", "value"), RENAMED)
def test_a_former_name_on_the_command_line_works_with_a_warning(former, today, value):
    choice = ["privacy=client", "clients=200", "codec=int8"]
    with pytest.warns(FutureWarning, match=rf"^{former} is now {today}; the old name works in this release only"):
        config = compose([*choice, former])
    assert config.overrides == [*choice, today]
    assert config == compose([*choice, today])
    assert rules.value_of(config, today.partition("=")[0]) == value


def test_a_former_name_in_a_file_works_with_a_warning(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nprivacy: {unit: client, client_target_epsilon: 3, client_sampling: deal}\n"
        "codec: {name: int8, feedback: true}\n"
    )
    with pytest.warns(FutureWarning, match="the old name works in this release only") as told:
        config = compose(["experiment=mine"], overlay=tmp_path)
    assert len(told) == 3
    assert (config.privacy.client.target_epsilon, config.privacy.client.sampling) == (3, "cyclic")
    assert (config.codec.error_feedback, config.codec.feedback, config.privacy.client_target_epsilon) == (
        True,
        None,
        None,
    )


def test_every_former_name_leads_to_an_option():
    for new, values in former_names(Config).values():
        assert all(declared(Config)[new].accepts(value) for value in values.values())


def test_today_s_names_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose(["privacy=client", "privacy.client.target_epsilon=3", "codec=int8", "codec.error_feedback=true"])


def test_a_misspelt_former_name_is_told_today_s_name():
    with pytest.raises(ConfigError, match=r"Did you mean privacy\.client\.target_epsilon\?"):
        compose(["privacy.client_target_epsilom=3"])


def test_options_without_effect_are_no_part_of_the_identity():
    plain = rules.identity(compose([]))
    assert (plain["privacy"], plain["quant"], "runtime" in plain) == ({"unit": "off"}, {"name": "off"}, False)
    assert rules.identity(compose(["privacy=example"]))["privacy"]["clip_norm"] == 1.0
    assert "sparsity_end" not in rules.identity(compose(["quant=int8"]))["quant"]
    assert rules.identity(compose(["quant=int8", "quant.sparsity=0.5"]))["quant"]["sparsity_end"] == 0.6


def test_a_declaration_refuses_what_is_no_choice():
    option = Declared("key", "a", "str", "help", choices=("a", "b"))
    assert (option.accepts("b"), option.accepts("c"), option.accepts(None)) == (True, False, False)
    assert problems(compose(["train.loss=l3"]))[0].rule.startswith("must be one of cross_entropy")
