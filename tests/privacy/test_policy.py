"""The owner's policy: what is weaker is declined, what cannot be read refuses, and nothing falls open."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedq.privacy import Asked, Declined, Policy, PolicyError, limits, read_policy, require, unaccounted_units

MODEL, BUNDLE = "ab" * 32, "cd" * 32
ASKED = Asked(unit="example", epsilon=3.0, delta=1e-5, data_path=Path("/srv/data/own.csv"), model=MODEL, bundle=BUNDLE)
POLICY = Policy(unit="example", max_epsilon=3.0, max_delta=1e-5)
LEAST = 'unit = "example"\nmax_epsilon = 3\nmax_delta = 1e-5\n'


def test_a_request_as_strong_as_the_policy_is_let_in():
    assert require(POLICY, ASKED) is None


def test_a_request_that_is_stronger_is_let_in():
    assert require(POLICY, replace(ASKED, epsilon=1.0, delta=1e-7)) is None
    assert require(replace(POLICY, unit="client"), ASKED) is None
    assert require(replace(POLICY, unit="off"), ASKED) is None


@pytest.mark.parametrize(
    ("policy", "asked", "reason"),
    [
        (POLICY, replace(ASKED, unit="off"), "privacy=off where at least example"),
        (POLICY, replace(ASKED, unit="client"), "privacy=client where at least example"),
        (replace(POLICY, unit="client"), replace(ASKED, unit="off"), "privacy=off where at least client"),
        (POLICY, replace(ASKED, epsilon=3.001), r"epsilon 3\.001 of at most 3"),
        (POLICY, replace(ASKED, epsilon=float("inf")), "epsilon inf"),
        (POLICY, replace(ASKED, epsilon=float("nan")), "epsilon nan"),
        (POLICY, replace(ASKED, noise="gaussian"), "privacy.noise=gaussian where at least discrete"),
        (replace(POLICY, noise="gaussian"), replace(ASKED, noise="seeded"), "noise=seeded where at least gaussian"),
        (POLICY, replace(ASKED, delta=1.1e-5), "delta 1.1e-05 of at most 1e-05"),
        (POLICY, replace(ASKED, delta=float("nan")), "delta nan"),
        (replace(POLICY, data_path="/srv/other"), ASKED, "only /srv/other may be read"),
        (replace(POLICY, data_path="/srv/dat"), ASKED, "only /srv/dat may be read"),
        (replace(POLICY, data_path="/srv/data"), replace(ASKED, data_path=None), "the data at None"),
        (replace(POLICY, data_path="/srv/data"), replace(ASKED, data_path=Path("/srv/data/../x")), "may be read"),
        (replace(POLICY, models=("00" * 8,)), ASKED, f"the model {MODEL}"),
        (replace(POLICY, models=("00" * 8,)), replace(ASKED, model=""), "the model without a digest"),
        (replace(POLICY, bundles=(MODEL,)), ASKED, f"the bundle {BUNDLE}"),
        (replace(POLICY, max_rounds=10), replace(ASKED, rounds=11), "11 rounds of at most 10; .* fewer with rounds="),
        (replace(POLICY, max_rounds=10), ASKED, "an unsaid number of rounds of at most 10"),
        (replace(POLICY, max_steps=10), replace(ASKED, steps=11), "11 steps in a round of at most 10"),
        (replace(POLICY, max_steps=10), ASKED, "an unsaid number of steps .* train.steps= in place of train.epochs="),
    ],
)
def test_whatever_is_weaker_is_declined_and_named(policy, asked, reason):
    with pytest.raises(Declined, match=reason) as caught:
        require(policy, asked)
    assert caught.value.reason == "policy"


def test_rounds_and_steps_up_to_the_most_are_let_in():
    assert require(replace(POLICY, max_rounds=10, max_steps=5), replace(ASKED, rounds=10, steps=5)) is None


def test_all_that_is_too_weak_is_named_at_once():
    with pytest.raises(Declined, match=r"privacy=client.*epsilon 8.*delta 0\.001"):
        require(POLICY, replace(ASKED, unit="client", epsilon=8.0, delta=1e-3))


def test_a_run_without_dp_is_weak_for_its_unit_alone():
    asked = replace(ASKED, unit="off", epsilon=float("inf"), delta=1.0)
    assert require(replace(POLICY, unit="off"), asked) is None


def test_a_path_below_the_folder_and_a_digest_by_its_beginning_are_let_in():
    policy = replace(POLICY, data_path="/srv/data", models=(MODEL[:16],), bundles=(BUNDLE,))
    assert require(policy, ASKED) is None


def test_a_link_out_of_the_folder_leads_out_of_it(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret.csv").write_text("x")
    (tmp_path / "allowed" / "link.csv").symlink_to(tmp_path / "secret.csv")
    asked = replace(ASKED, data_path=tmp_path / "allowed" / "link.csv")
    with pytest.raises(Declined, match="may be read"):
        require(replace(POLICY, data_path=str(tmp_path / "allowed")), asked)


def test_a_policy_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "policy.toml"
    more = f'models = ["{MODEL}"]\nbundles = ["{BUNDLE[:16]}"]\nhead = "/other/head"\n'
    more += "max_rounds = 20\nmax_steps = 50\nmax_seconds = 600\nmax_memory = 2000\n"
    path.write_text(f'version = 1\n{LEAST}data_path = "/srv/data"\n{more}')
    assert read_policy(path) == Policy(
        "example", 3.0, 1e-5, "/srv/data", (MODEL,), (BUNDLE[:16],), "discrete", "/other/head", 20, 50, 600.0, 2000
    )


def test_no_limit_on_epsilon_must_be_written_out(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('unit = "off"\nmax_epsilon = inf\nmax_delta = 1\n')
    assert read_policy(path).max_epsilon == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unit is missing: add unit"),
        ('unit = "example"\nmax_delta = 1e-5', "max_epsilon is missing: add max_epsilon = 3"),
        ('unit = "example"\nmax_epsilon = 3', "max_delta is missing"),
        ("not toml", "not a policy in TOML"),
        (LEAST + "epsilon = 3", "epsilon: no such key; there are .*max_epsilon"),
        (LEAST.replace("example", "person"), "unit='person': must be one of off, client, example"),
        (LEAST.replace("= 3", "= 0"), "max_epsilon=0: must be a number above 0"),
        (LEAST.replace("= 3", "= nan"), "max_epsilon=nan"),
        (LEAST.replace("= 3", '= "3"'), "max_epsilon='3'"),
        (LEAST.replace("= 3", "= true"), "max_epsilon=True"),
        (LEAST.replace("1e-5", "2"), "max_delta=2: must be a number above 0 and at most 1"),
        (LEAST + 'data_path = "own"', "data_path='own': must be an absolute path"),
        (LEAST + 'noise = "seeded"', "noise='seeded': must be one of discrete, gaussian"),
        (LEAST + "head = 3", "head=3: must be an absolute path"),
        (LEAST + 'models = "abc"', "models='abc': must be a list of digests"),
        (LEAST + 'models = ["abc"]', "'abc' is no digest"),
        (LEAST + 'bundles = ["ABCDABCDABCDABCD"]', "is no digest"),
        (LEAST + "max_rounds = 0", "max_rounds=0: must be a whole number, 1 or more; leave it out for no limit"),
        (LEAST + "max_steps = 1.5", "max_steps=1.5: must be a whole number"),
        (LEAST + "max_memory = true", "max_memory=True: must be a whole number"),
        (LEAST + 'max_seconds = "600"', "max_seconds='600': must be a number above 0"),
        (LEAST + "max_seconds = nan", "max_seconds=nan: must be a number above 0"),
        (LEAST + "max_seconds = inf", "max_seconds=inf: must be a number above 0"),
        (LEAST + "version = 2", "version=2: this fedq reads version 1"),
        (b"\xff\xfe", "not a policy in TOML"),
        ("[" * 100_000, "not a policy in TOML"),
        ("a = " + "[" * 100_000, "not a policy in TOML"),
        (LEAST.replace("= 3", "= " + "9" * 5_000), "not a policy in TOML"),
        (LEAST.replace("= 3", "= " + "9" * 400), "too large"),
        (LEAST + 'data_path = "/srv/\\u0000"', "must be an absolute path"),
    ],
)
def test_a_file_that_is_no_policy_is_an_error_that_names_its_mend(tmp_path, text, message):
    path = tmp_path / "policy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PolicyError, match=message):
        read_policy(path)


def test_a_policy_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(PolicyError, match=r"no such file; write one, or take policy= out"):
        read_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("most", "epsilon", "delta", "held_to"),
    [
        (None, None, None, (None, None)),
        (None, 2.0, 1e-6, (2.0, 1e-6)),
        ((3.0, 1e-5), None, None, (3.0, 1e-5)),
        ((3.0, 1e-5), 5.0, 1e-6, (3.0, 1e-6)),
        ((3.0, 1e-5), 2.0, 1e-4, (2.0, 1e-5)),
    ],
)
def test_data_are_held_to_the_stricter_of_its_owner_s_limits(most, epsilon, delta, held_to):
    policy = None if most is None else Policy("example", *most)
    assert limits(policy, epsilon, delta) == held_to


@pytest.mark.parametrize(
    ("unit", "units"), [(None, ("off", "client")), ("off", ("off", "client")), ("client", ("client",)), ("example", ())]
)
def test_what_a_policy_accepts_of_which_no_ledger_of_its_owner_counts_anything(unit, units):
    assert unaccounted_units(None if unit is None else Policy(unit, 3.0, 1e-5)) == units
