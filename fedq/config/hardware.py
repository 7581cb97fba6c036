"""Rules about hardware options. Knows the schema; not torch or the devices of a machine."""

from collections.abc import Iterator

from fedq.config.client_level import protects_examples
from fedq.config.problem import Problem
from fedq.config.schema import Config


def problems(config: Config) -> Iterator[Problem]:
    """Wrong combinations of hardware options; missing devices are found elsewhere."""
    train = config.train
    if protects_examples(config):
        for key, idle, rule in (
            ("compile", False, "the hooks that give DP-SGD each example's gradient do not go through the compiler"),
            ("data_parallel", False, "DP-SGD clips and sums a batch in one place"),
            ("autocast", "off", "under DP each example's gradient and its bound are computed in float32"),
        ):
            if getattr(train, key) != idle:
                fix = f"Use train.{key}={str(idle).lower()}, or privacy=off"
                yield Problem(f"train.{key}", getattr(train, key), rule, fix)
    if train.data_parallel and train.device in ("cpu", "mps"):
        rule = f"a batch is split over GPUs, and train.device={train.device} names none"
        yield Problem("train.data_parallel", True, rule, "Use train.device=cuda, or train.data_parallel=false")
    if train.data_parallel and train.compile:
        rule = "the parts of a split batch are not compiled"
        yield Problem("train.compile", True, rule, "Use train.compile=false or train.data_parallel=false")
    if train.autocast == "bf16" and train.device == "mps":
        rule = "bfloat16 is for cpu and cuda"
        yield Problem("train.autocast", train.autocast, rule, "Use train.autocast=off, or train.device=cpu")
    if config.runtime.name == "ray" and not config.runtime.client_resources.get("num_gpus"):
        for key in ["device"] * (train.device == "cuda") + ["data_parallel"] * train.data_parallel:
            rule = "Ray hides all GPUs from clients with num_gpus: 0"
            fix = "Add runtime.client_resources.num_gpus=1"
            yield Problem(f"train.{key}", getattr(train, key), rule, fix)
