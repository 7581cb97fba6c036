"""A config becomes an experiment, or all that is wrong with it: how the model and the updates travel."""

import pytest
import torch

from fedq.codec import Float32, Int4, Int8, Sign, TopK
from fedq.config import ConfigError, conf_folder
from fedq.experiment import SERVER, build
from fedq.server import Downlink
from tests.quick import compose


def built(*overrides):
    return build(compose(["clients=2", "rounds=1", *overrides]))


@pytest.mark.parametrize("name", sorted(file.stem for file in (conf_folder() / "codec").glob("*.yaml")))
def test_every_choice_of_codec_builds(name):
    assert built(f"codec={name}").codec.name == name


def test_the_options_of_the_update_reach_its_codec():
    words = ["codec=sign", "codec.rotate=true", "codec.block=1024", "codec.error_feedback=true", "codec.entropy=true"]
    assert built(*words).codec == Sign(block=1024, rotate=True, error_feedback=True, entropy=True)


def test_topk_feeds_back_where_nothing_else_is_said():
    assert built("codec=topk").codec == TopK(error_feedback=True)


def test_without_a_word_about_it_the_model_travels_as_the_update():
    assert built("codec=int8", "codec.block=64", "codec.error_feedback=true").downlink == Downlink(Int8(block=64))


def test_the_model_may_travel_in_another_codec_than_the_update():
    experiment = built("codec=sign", "downlink.name=int4", "downlink.rotate=true")
    assert (experiment.codec, experiment.downlink) == (Sign(rotate=True), Downlink(Int4(rotate=True)))


def test_changes_feed_back_what_they_lost_without_being_told_to():
    experiment = built("codec=float32", "downlink.name=sign", "downlink.kind=delta")
    assert (experiment.codec, experiment.downlink) == (Float32(), Downlink(Sign(error_feedback=True), "delta"))


@pytest.mark.parametrize(("words", "keeps"), [([], False), (["downlink.name=sign", "downlink.kind=delta"], True)])
def test_a_client_keeps_weights_where_changes_are_sent(words, keeps):
    assert built(*words).client("0").keeps_weights is keeps


POWER = "with rotate it must be a power of two from 256"
LLOYD_MAX = "must be nearest or stochastic. lloyd_max needs rotate=true and int4, int2 or sign"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["codec=int4", "codec.rotate=true", "codec.block=300"], f"codec.block=300: {POWER}. Try codec.block=4096"),
        (["codec=sign", "codec.rotate=true", "codec.block=128"], f"codec.block=128: {POWER}. Try codec.block=4096"),
        (
            ["downlink.name=int4", "downlink.rotate=true", "downlink.block=300"],
            f"downlink.block=300: {POWER}. Try downlink.block=4096",
        ),
        (["codec=int4", "codec.rounding=lloyd_max"], f"codec.rounding=lloyd_max: {LLOYD_MAX}"),
        (["codec=int8", "codec.rotate=true", "codec.rounding=lloyd_max"], f"codec.rounding=lloyd_max: {LLOYD_MAX}"),
        (["codec=topk", "codec.rounding=lloyd_max"], f"codec.rounding=lloyd_max: {LLOYD_MAX}"),
        (["downlink.name=int2", "downlink.rounding=lloyd_max"], f"downlink.rounding=lloyd_max: {LLOYD_MAX}"),
        (
            ["codec=sign", "downlink.kind=delta"],
            "downlink.kind=delta: changes need a codec of their own, with downlink.name. Add downlink.name=sign",
        ),
        (
            ["downlink.name=topk"],
            "downlink.name=topk: too coarse for weights, which would be no model any more. "
            "Use downlink.kind=delta, or downlink.name=int8",
        ),
        (
            ["downlink.name=randk", "downlink.fraction=0.5"],
            "downlink.name=randk: too coarse for weights, which would be no model any more. "
            "Use downlink.kind=delta, or downlink.name=int8",
        ),
        (["codec=topk", "codec.fraction=2"], "codec.fraction=2.0: must be in [1e-06, 1]. Try codec.fraction=0.01"),
        (["codec=randk", "codec.fraction=0"], "codec.fraction=0.0: must be in [1e-06, 1]. Try codec.fraction=0.01"),
        (
            ["downlink.name=topk", "downlink.kind=delta", "downlink.fraction=2"],
            "downlink.fraction=2.0: must be in [1e-06, 1]. Try downlink.fraction=0.01",
        ),
        (["codec=int8", "codec.block=8"], "codec.block=8: must be in [16, 65536]. Try codec.block=16"),
        (["downlink.kind=both"], "downlink.kind=both: must be one of weights, delta. Use downlink.kind=weights"),
    ],
)
def test_what_does_not_go_together_is_told_once_with_key_value_rule_and_mend(overrides, told):
    with pytest.raises(ConfigError, match=r"^(codec|downlink)\.") as caught:
        built(*overrides)
    assert str(caught.value) == told


def test_what_is_wrong_in_both_directions_is_told_at_once():
    words = ["codec=int4", "codec.rotate=true", "codec.block=300", "downlink.name=topk", "downlink.rounding=lloyd_max"]
    with pytest.raises(ConfigError, match="codec") as caught:
        built(*words)
    assert [problem.key for problem in caught.value.problems] == ["codec.block", "downlink.rounding"]


NO_GPU = pytest.mark.skipif(
    torch.cuda.is_available(), reason="tells what is said where there is no GPU, and here is one"
)


@NO_GPU
@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "train.device=cuda",
            "train.device=cuda: torch finds no such device on this machine, only cpu. "
            "Use train.device=auto, which takes the best there is",
        ),
        (
            "train.data_parallel=true",
            "train.data_parallel=True: a batch is split over 2 GPUs or more, and torch sees 0 here. "
            "Use train.data_parallel=false",
        ),
    ],
)
def test_hardware_that_is_not_there_is_told_before_any_work(override, told):
    with pytest.raises(ConfigError, match=r"^train\.") as caught:
        built(override)
    assert str(caught.value).replace("only mps, cpu", "only cpu") == told


def test_one_gpu_is_too_few_to_split_a_batch_over(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="torch sees 1 here"):
        built("train.data_parallel=true")


def test_a_compiler_that_is_missing_is_told_before_any_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler \(no-such-compiler\).* Install it, or use"):
        built("train.compile=true", "train.device=cpu")


@NO_GPU
@pytest.mark.parametrize(("runtime", "owner"), [("local", SERVER), ("deployment", None)])
def test_who_trains_no_client_needs_no_gpu(runtime, owner):
    """The server of a deployment, and the machine that submits it."""
    experiment = build(
        compose(["clients=2", f"runtime={runtime}", "train.device=cuda", "strategy.weighting=equal"]), owner=owner
    )
    assert experiment.trainer.hardware.device.type in ("cpu", "mps")


def test_the_trainer_gets_the_hardware_and_the_precision():
    trainer = built("train.device=cpu", "train.compile=true", "train.autocast=bf16").trainer
    assert trainer.hardware.devices == (torch.device("cpu"),)
    assert trainer.hardware.compiled
    assert trainer.recipe.autocast == "bf16"
