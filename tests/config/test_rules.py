import dataclasses
import inspect
import math

import pytest

from fedq.codec import CODECS
from fedq.config import Config, problems, public, rules
from tests.quick import compose


def keys(*overrides):
    return [p.key for p in problems(compose(overrides))]


def private(*overrides):
    return ["privacy=example", "privacy.nominal_examples=100", *overrides]


def test_the_default_and_the_demo_have_no_problem():
    assert keys() == []
    assert keys("experiment=demo") == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("rounds=0", "rounds"),
        ("clients=0", "clients"),
        ("fraction=0", "fraction"),
        ("fraction=1.5", "fraction"),
        ("seed=-1", "seed"),
        ("train.lr=0", "train.lr"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.schedule=step", "train.schedule"),
        ("codec.block=8", "codec.block"),
        ("quant.weight_range=128", "quant.weight_range"),
        ("quant.weight_bits=3", "quant.weight_bits"),
        ("runtime.workers=0", "runtime.workers"),
        ("strategy.keep=first", "strategy.keep"),
    ],
)
def test_a_value_outside_its_bounds_is_named(override, key):
    group = [f"{key.partition('.')[0]}=int8"] if key.startswith(("codec", "quant")) else []
    assert keys(*group, override) == [key]


@pytest.mark.parametrize("override", ["train.compile=true", "train.data_parallel=true", "train.autocast=bf16"])
def test_dp_sgd_computes_in_float32_in_one_place_and_uncompiled(override):
    key = override.partition("=")[0]
    (problem,) = problems(compose(private(override)))
    assert problem.key == key
    assert problem.fix.endswith(", or privacy=off")
    assert keys(override) == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.data_parallel=true", "train.device=cpu"], "train.data_parallel"),
        (["train.data_parallel=true", "train.device=mps"], "train.data_parallel"),
        (["train.data_parallel=true", "train.compile=true"], "train.compile"),
        (["train.autocast=bf16", "train.device=mps"], "train.autocast"),
        (["train.device=tpu"], "train.device"),
        (["train.autocast=fp16"], "train.autocast"),
        (["runtime=ray", "train.device=cuda"], "train.device"),
        (["runtime=ray", "train.data_parallel=true"], "train.data_parallel"),
    ],
)
def test_hardware_that_does_not_go_together_is_named(overrides, key):
    assert keys(*overrides) == [key]


def test_a_client_on_ray_may_use_the_gpu_that_it_is_given():
    assert keys("runtime=ray", "runtime.client_resources.num_gpus=0.5", "train.device=cuda") == []


def test_hardware_is_no_part_of_an_experiment_but_arithmetic_is():
    plain = rules.config_hash(compose([]))
    for override in ("train.device=cuda", "train.compile=true", "train.data_parallel=true"):
        assert rules.config_hash(compose([override])) == plain
    assert rules.config_hash(compose(["train.autocast=bf16"])) != plain


def test_a_moving_average_is_another_experiment_and_its_decay_lies_between_0_and_1():
    assert rules.config_hash(compose(["strategy.ema=0.9"])) != rules.config_hash(compose([]))
    for decay in (0, 1, -0.5):
        assert keys(f"strategy.ema={decay}") == ["strategy.ema"]


def test_views_are_of_kinds_that_the_training_room_knows():
    assert keys(*private("privacy.augmentations=4")) == []
    assert keys(*private("privacy.augmentations=0")) == ["privacy.augmentations"]
    for kinds in ("[]", "[flip,turn]"):
        assert keys(*private("privacy.augmentations=4", f"privacy.augment={kinds}")) == ["privacy.augment"]
    assert keys(*private("privacy.augment=[flip]")) == ["privacy.augment"]
    assert keys("privacy.augmentations=4") == ["privacy.augmentations"]


def test_not_a_number_is_outside_every_bound():
    config = compose([])
    config.train.lr = math.nan
    assert [p.key for p in problems(config)] == ["train.lr"]


def test_several_rules_are_reported_at_once_with_value_rule_and_mend():
    found = problems(
        compose([*private("privacy.target_epsilon=-1", "fraction=0"), "quant=int8", "quant.activations=observed"])
    )
    assert {p.key for p in found} == {"fraction", "privacy.target_epsilon", "quant.activations"}
    observed = next(p for p in found if p.key == "quant.activations")
    assert "not covered by DP-SGD" in observed.rule
    assert "fixed or learned" in observed.fix


def test_weights_that_are_rounded_at_random_do_not_go_with_dp_sgd():
    assert keys("quant=int8", "quant.weight_rounding=stochastic") == []
    assert keys(*private(), "quant=int8", "quant.weight_rounding=stochastic") == ["quant.weight_rounding"]


def test_observed_ranges_are_fine_without_privacy():
    assert keys("quant=int8", "quant.activations=observed") == []


def test_epochs_and_steps_exclude_each_other():
    assert keys("train.epochs=1", "train.steps=3") == ["train.epochs"]
    assert keys("train.epochs=null") == ["train.epochs"]
    assert keys("train.epochs=null", "train.steps=3") == []


def test_privacy_needs_a_budget_or_a_noise():
    assert keys(*private("privacy.target_epsilon=null")) == ["privacy.target_epsilon"]
    assert keys(*private("privacy.target_epsilon=null", "privacy.noise_multiplier=1")) == []


def test_privacy_needs_a_public_number_of_examples():
    config = compose(["privacy=example", "data._target_=my.load"])
    assert [p.key for p in problems(config)] == ["privacy.nominal_examples"]


def test_the_public_number_is_the_published_one_shared_out():
    assert public.nominal_examples(compose(["privacy=example", "clients=10"])) == 125  # 1,258 published


def test_the_published_numbers_are_those_of_the_data():
    from fedq.data import digits

    assert compose([]).data["nominal_examples"] == len(digits().train)
    demo = compose(["experiment=demo"]).data
    assert demo["nominal_examples"] == len(digits(validation_fraction=demo["validation_fraction"]).train)


def test_gradient_clipping_of_batches_is_no_bound_under_dp():
    assert keys(*private("train.clip_grad=1")) == ["train.clip_grad"]


def test_an_option_that_the_choice_lacks_is_an_error_only_if_the_user_set_it():
    assert keys("experiment=demo", "codec=float32") == []
    assert keys("codec=float32", "codec.block=64") == ["codec.block"]
    assert keys("experiment=demo", "privacy=off") == []
    assert keys("privacy.target_epsilon=3") == ["privacy.target_epsilon"]


def test_a_round_cannot_need_more_clients_than_it_asks():
    assert keys("clients=10", "fraction=0.3", "strategy.min_clients=4") == ["strategy.min_clients"]


@pytest.mark.parametrize(("clients", "fraction", "size"), [(10, 1, 10), (10, 0.35, 3), (3, 0.1, 1), (10, 0.3, 3)])
def test_cohort_is_the_floor_of_the_fraction_and_at_least_one(clients, fraction, size):
    assert public.cohort_size(compose([f"clients={clients}", f"fraction={fraction}"])) == size


@pytest.mark.parametrize(
    ("clients", "fraction", "rounds", "cap"), [(10, 1, 7, 7), (10, 0.5, 7, 4), (100, 0.1, 100, 10), (100, 0.1, 101, 11)]
)
def test_the_cap_covers_the_client_that_takes_part_most_often(clients, fraction, rounds, cap):
    config = compose([f"clients={clients}", f"fraction={fraction}", f"rounds={rounds}"])
    assert public.participation_cap(config) == cap


def test_epochs_become_public_steps_under_dp():
    config = compose(private("train.epochs=3", "train.batch_size=25"))
    assert public.sample_rate(config) == 0.25
    assert public.dp_steps(config) == 12


def test_identity_ignores_where_and_how_it_runs():
    one, other = compose(["runtime.workers=2", "name=a"]), compose(["name=b"])
    assert rules.config_hash(one) == rules.config_hash(other)
    assert rules.config_hash(one) != rules.config_hash(compose(["seed=1"]))


def test_the_rules_name_exactly_the_options_that_each_codec_takes():
    taken = {name: set(inspect.signature(kind).parameters) for name, kind in CODECS.items()}
    assert {name: set(options) for name, options in rules.CODEC_OPTIONS.items()} == taken


@pytest.mark.parametrize(("group", "lacks"), [("codec", set()), ("downlink", {"kind"})])
def test_the_keys_of_both_directions_are_the_options_that_any_codec_takes(group, lacks):
    keys_of_group = {f.name for f in dataclasses.fields(getattr(Config(), group))}
    taken = {option for kind in CODECS.values() for option in inspect.signature(kind).parameters}
    assert keys_of_group == {"name", "feedback"} | taken | lacks


@pytest.mark.parametrize(
    "idle",
    [
        ["privacy.clip_norm=3"],
        ["privacy.ledger=x"],
        ["quant.weight_range=127"],
        ["partition.alpha=0.1"],
        ["codec.error_feedback=true"],
        ["experiment=demo", "train.batch_size=32"],
        ["experiment=demo", "strategy.weighting=examples"],
    ],
)
def test_an_option_that_would_do_nothing_is_refused(idle):
    assert keys(*idle) == [idle[-1].partition("=")[0]]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["codec.rotate=true"], "codec.rotate=True: codec.name=float32 has no such option. Use codec.name=int8"),
        (
            ["codec=int8", "codec.fraction=0.1"],
            "codec.fraction=0.1: codec.name=int8 has no such option. Use codec.name=topk",
        ),
        (
            ["codec=topk", "codec.rotate=true"],
            "codec.rotate=True: codec.name=topk has no such option. Use codec.name=int8",
        ),
        (
            ["codec=float16", "codec.entropy=true"],
            "codec.entropy=True: codec.name=float16 has no such option. Use codec.name=int8",
        ),
        (["downlink.block=64"], "downlink.block=64: downlink.name is null. Use downlink.name=int8"),
        (
            ["codec=int8", "downlink.name=float32", "downlink.rotate=true"],
            "downlink.rotate=True: downlink.name=float32 has no such option. Use downlink.name=int8",
        ),
        (
            ["downlink.name=sign", "downlink.kind=delta", "downlink.error_feedback=true"],
            "downlink.error_feedback=True: error feedback is always on for changes, and has no use for weights. "
            "Leave it out; downlink.kind=delta has it",
        ),
    ],
)
def test_an_option_that_a_codec_lacks_is_refused_with_one_that_has_it(overrides, told):
    (problem,) = problems(compose(overrides))
    assert str(problem) == told


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("group", ["codec", "downlink"])
def test_a_codec_takes_its_own_options(group, name):
    values = {
        "block": 256,
        "rounding": "nearest",
        "rotate": "true",
        "fraction": 0.1,
        "entropy": "true",
        "error_feedback": "true",
    }
    own = [f"{group}.{option}={values[option]}" for option in rules.CODEC_OPTIONS[name]]
    assert keys(f"{group}.name={name}", *(word for word in own if not word.startswith("downlink.error_feedback"))) == []


# --- names of clients -------------------------------------------------------------------------------------


def test_clients_are_numbered_where_they_have_no_names():
    assert public.identities(compose(["clients=3"])) == ["0", "1", "2"]


def test_clients_have_the_names_that_they_are_given():
    named = ["clients=2", "names=[clinic-b,clinic-a]"]
    assert keys(*named) == []
    assert public.identities(compose(named)) == ["clinic-b", "clinic-a"]


@pytest.mark.parametrize(
    ("names", "fix"),
    [("[a]", "Use clients=1"), ("[a,b,c]", "Use clients=3"), ("[a,a]", "Use clients=1")],
)
def test_there_is_one_different_name_for_each_client(names, fix):
    (problem,) = problems(compose(["clients=2", f"names={names}"]))
    assert (problem.key, problem.rule) == ("names", "must be 2 different names, one for each client")
    assert fix in problem.fix


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../evil", "a/b", "a b", "-a", ".a", "_a", "a\n", "a\x1b[2J", "größe", "x" * 65]
)
def test_a_name_that_is_no_plain_name_of_a_folder_is_refused(name):
    config = compose(["clients=1"])
    config.names = [name]
    assert [p.key for p in problems(config)] == ["names"]


@pytest.mark.parametrize("name", ["a", "0", "clinic-a", "Clinic_A.2", "x" * 64])
def test_letters_digits_dots_hyphens_and_underscores_make_a_name(name):
    config = compose(["clients=1"])
    config.names = [name]
    assert problems(config) == []


def test_names_are_keys_of_random_numbers_and_so_part_of_the_experiment():
    one, other = compose(["clients=2", "names=[a,b]"]), compose(["clients=2", "names=[a,c]"])
    assert rules.config_hash(one) != rules.config_hash(other)


# --- runtimes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "override", "fix"),
    [
        ("ray", "runtime.workers=2", "runtime=local"),
        ("deployment", "runtime.workers=2", "runtime=local"),
        ("local", "runtime.address=1.2.3.4:6379", "runtime=ray"),
        ("deployment", "runtime.address=1.2.3.4:6379", "runtime=ray"),
        ("local", "runtime.connection=mine", "runtime=deployment"),
        ("ray", "runtime.connection=mine", "runtime=deployment"),
        ("local", "runtime.wait=10", "runtime=deployment"),
        ("local", "runtime.min_available=2", "runtime=deployment"),
        ("local", "runtime.timeout=10", "runtime=deployment"),
    ],
)
def test_an_option_of_another_runtime_is_refused(runtime, override, fix):
    (problem,) = problems(compose([f"runtime={runtime}", "strategy.weighting=equal", override]))
    assert problem.key == override.partition("=")[0]
    assert problem.rule == f"runtime={runtime} has no such option"
    assert fix in problem.fix


@pytest.mark.parametrize(
    "own",
    [
        ["runtime=local", "runtime.workers=2"],
        ["runtime=ray", "runtime.address=1.2.3.4:6379", "runtime.wait=10", "runtime.timeout=5"],
        ["runtime=ray", "runtime.client_resources.num_cpus=2", "runtime.client_resources.num_gpus=0.5"],
        ["runtime=deployment", "strategy.weighting=equal", "runtime.connection=mine", "runtime.min_available=10"],
    ],
)
def test_a_runtime_takes_its_own_options(own):
    assert keys(*own) == []


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("num_cpu=1", "no such resource"),
        ("memory=1", "no such resource"),
        ("num_cpus=0", "must be a number above 0"),
        ("num_cpus=-1", "must be a number above 0"),
        ("num_cpus=two", "must be a number above 0"),
        ("num_cpus=true", "must be a number above 0"),
        ("num_cpus=inf", "must be a number above 0"),
        ("num_cpus=nan", "must be a number above 0"),
        ("num_gpus=-0.5", "must be a number, 0 or more"),
        ("num_gpus=null", "must be a number, 0 or more"),
    ],
)
def test_a_resource_that_ray_cannot_give_is_refused(override, rule):
    (problem,) = problems(compose(["runtime=ray", f"runtime.client_resources.{override}"]))
    assert problem.key == f"runtime.client_resources.{override.partition('=')[0]}"
    assert problem.rule == rule


def test_more_clients_than_there_are_can_never_be_enough():
    assert keys("runtime=deployment", "strategy.weighting=equal", "clients=3", "runtime.min_available=3") == []
    assert keys("runtime=deployment", "strategy.weighting=equal", "clients=3", "runtime.min_available=4") == [
        "runtime.min_available"
    ]
    assert keys("runtime=deployment", "strategy.weighting=equal", "clients=3", "runtime.min_available=0") == [
        "runtime.min_available"
    ]


def test_in_a_deployment_nobody_but_the_client_says_where_its_ledger_lies():
    ledger = private("privacy.ledger=/srv/ledgers")
    assert keys(*ledger) == []
    assert keys(*ledger, "runtime=deployment") == ["privacy.ledger"]


def test_the_runtime_is_no_part_of_the_experiment():
    hashes = {rules.config_hash(compose([f"runtime={name}"])) for name in ("local", "ray", "deployment")}
    assert len(hashes) == 1
