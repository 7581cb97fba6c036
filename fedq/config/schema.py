"""The options of an experiment, each declared once: type, default, help, choices, bounds, when it applies.

A group's class holds the options of all its choices: with one schema per choice,
`experiment=demo privacy=off` would fail on the options that the demo sets for `privacy=example`.
Plain dataclasses, since OmegaConf raises `ReadonlyConfigError` on frozen ones. Rules that span groups: `rules`.
"""

from dataclasses import dataclass, field
from typing import Any

from fedq.codec import CODECS
from fedq.codec.options import ROUNDINGS
from fedq.config.option import When, option, renamed
from fedq.config.privacy_options import Privacy
from fedq.config.quant_options import Quant
from fedq.core import choices

_LOCAL = When("runtime.name", ("local",))
_RAY = When("runtime.name", ("ray",))
_DEPLOYED = When("runtime.name", ("deployment",))
_PROCESSES = When("runtime.name", ("ray", "deployment"))
_DIRICHLET = When("partition.name", ("dirichlet",))
_WEIGHTED = (
    When(
        "privacy.unit",
        ("off",),
        why="under DP all clients have the same weight: a weight would reveal how much data a client has",
        fix="Leave it out",
    ),
    When(
        "strategy.aggregate",
        ("mean",),
        why="strategy.aggregate={value} counts all clients the same",
        fix="Leave it out",
    ),
)
_BY_EXAMPLES = (
    *_WEIGHTED,
    When("strategy.weighting", ("examples",), why="strategy.weighting={value} counts all clients the same"),
)


@dataclass
class Partition:
    name: str = option("iid", "partition of the examples over clients", choices=choices.PARTITIONS)
    alpha: float = option(
        0.5, "concentration; smaller is more skewed (Hsu et al. 2019)", bounds="(0, inf)", when=_DIRICHLET
    )
    min_size: int = option(10, "the fewest examples that a client may hold", bounds="[1, inf)", when=_DIRICHLET)


@dataclass
class Train:
    epochs: float | None = option(
        None, "local passes over the shard in a round (or set train.steps)", bounds="(0, 10000]", example=1
    )
    steps: int | None = option(None, "local optimizer steps in a round (or set train.epochs)", bounds="[1, 1000000]")
    batch_size: int = option(32, "examples in a batch; the expected number under DP", bounds="[1, 1000000]")
    optimizer: str = option("SGD", "client optimizer: any class of torch.optim by name")
    lr: float = option(0.1, "client learning rate in the first round", bounds="(0, inf)")
    optimizer_options: dict[str, Any] = option({}, "other arguments of the optimizer, e.g. momentum")
    schedule: str = option("constant", "learning rate over the rounds", choices=("constant", "linear", "cosine"))
    clip_grad: float | None = option(None, "largest L2 norm of a batch gradient (privacy=off only)", bounds="(0, inf)")
    loss: str = option("cross_entropy", "loss of local training", choices=choices.LOSSES)
    metric: str = option("accuracy", "quality of the model", choices=choices.METRICS)
    holdout: float = option(
        0.2,
        "share of a shard held out for evaluation: without a test set at the server, or with evaluate=dp",
        bounds="(0, 1)",
    )
    device: str = option(
        "auto",
        "device of local training; auto: cuda or mps where there is one",
        choices=("auto", "cpu", "cuda", "mps"),
        identity=False,
    )
    compile: bool = option(
        False, "torch.compile the training step: 6 to 30 s once; meant for GPUs, slower on CPUs", identity=False
    )
    data_parallel: bool = option(
        False, "split each batch over all GPUs of the machine (privacy=off only)", identity=False
    )
    autocast: str = option("off", "bf16: matrix products of the forward pass in bfloat16", choices=("off", "bf16"))


@dataclass
class Codec:
    name: str = option("float32", "the update on the wire", choices=tuple(CODECS))
    block: int | None = option(
        None,
        "values that share one scale; null: 256 (int8, int4), 1024, or 4096 with rotate",
        bounds="[16, 65536]",
    )
    rounding: str | None = option(
        None, "rounding to levels; null: lloyd_max with rotate, else nearest", choices=ROUNDINGS
    )
    rotate: bool = option(False, "randomized Hadamard rotation first: outliers cost less, 1 to 4 bits are unbiased")
    fraction: float = option(0.01, "topk, randk: share of the values that is sent", bounds="[1e-06, 1]")
    error_feedback: bool = option(False, "add the codec's error to the next update")
    entropy: bool = option(False, "deflate the levels: lossless, fewer bytes where levels are unequally frequent")

    feedback: Any = renamed("codec.error_feedback")


@dataclass
class Downlink(Codec):
    """The codec of the model that the server sends, and whether it carries weights or changes."""

    name: str | None = option(  # type: ignore[assignment]
        None,
        "the model on the wire; null: as codec where that is precise enough, else int8",
        choices=tuple(CODECS),
    )
    kind: str = option(
        "weights",
        "weights (each packet is complete) or delta (changes since the client's last model)",
        choices=("weights", "delta"),
    )

    feedback: Any = renamed("downlink.error_feedback")


@dataclass
class Strategy:
    name: str = option("fedavg", "set of options of the server", choices=("fedavg",))
    server_optimizer: str = option(
        "SGD", "optimizer over the aggregate: any class of torch.optim; SGD with lr 1 is FedAvg"
    )
    server_lr: float = option(1.0, "server learning rate", bounds="(0, inf)")
    server_options: dict[str, Any] = option({}, "other arguments of the server optimizer")
    weighting: str = option(
        "examples",
        "weight of a client: its examples (in a deployment as strategy.weights says), or equal",
        choices=("examples", "equal"),
        when=_WEIGHTED,
    )
    weights: Any = option(  # a mapping; Any, so that {0: 1} may be written for client 0
        {},
        "client -> its number of examples, for every client; {}: from the partition, in a simulation",
        when=_BY_EXAMPLES,
    )
    min_clients: int = option(
        1,
        "fewest accepted replies; with fewer the round is skipped, the model unchanged",
        bounds="[1, inf)",
    )
    max_weight: float | None = option(
        None, "largest weight of a client; null: no limit", bounds=f"(0, {2**20}]", when=_BY_EXAMPLES
    )
    max_update_norm: Any = option(  # a number or a word
        "auto",
        "longest update, longer ones are scaled down: a number (L2 norm), off, or auto (twice the median of the last "
        "rounds; under DP-SGD 1.25 times, and never beyond what its public numbers allow)",
        when=When(
            "privacy.unit",
            unless=("client", "both"),
            why="privacy={value} clips every update already",
            fix="Leave it out",
        ),
    )
    aggregate: str = option(
        "mean",
        "mean is weighted; against lying clients: median or trimmed_mean of each coordinate, unweighted",
        choices=choices.AGGREGATES,
    )
    trim: float = option(
        0.2,
        "share of updates left out at each end, at least that of lying clients",
        bounds="(0, 0.5)",
        when=When("strategy.aggregate", ("trimmed_mean",), why="strategy.aggregate={value} trims nothing"),
    )
    evaluate_every: int = option(
        1, "rounds between evaluations (the last five are always evaluated)", bounds="[1, inf)"
    )
    keep: str = option("last", "model that is kept; best is by the validation set", choices=("last", "best"))
    ema: float | None = option(
        None,
        "decay a round of a moving average of the models, which is evaluated and kept instead; null: none",
        bounds="(0, 1)",
        example=0.9,
    )

    server: Any = renamed("strategy.server_optimizer")


@dataclass
class Runtime:
    name: str = option("local", "where the apps run", choices=("local", "ray", "deployment"), identity=False)
    workers: Any = option(  # a number or a word
        "auto",
        "processes that train clients, this one included: 1 to 256, or auto: as many as cores and as pay",
        when=_LOCAL,
        identity=False,
    )
    address: str | None = option(
        None,
        "address of an existing cluster; null: start a cluster here for this run",
        when=_RAY,
        identity=False,
    )
    client_resources: dict[str, Any] = option(
        {}, "ray: resources of one client; {} means num_cpus: 1, num_gpus: 0", identity=False
    )
    connection: str | None = option(
        None,
        "SuperLink connection in Flower's config.toml; null: its default",
        when=_DEPLOYED,
        identity=False,
    )
    insecure: bool = option(
        False,
        "allow a connection without encryption or without certificates (--insecure)",
        when=_DEPLOYED,
        identity=False,
    )
    wait: float = option(
        300.0,
        "seconds to wait for all clients before round 1",
        bounds="[0, 604800]",
        when=_PROCESSES,
        identity=False,
    )
    min_available: int | None = option(
        None,
        "fewest clients to begin with after the wait; null: all",
        bounds="[1, 1000000]",
        when=_PROCESSES,
        identity=False,
    )
    timeout: float = option(
        3600.0,
        "seconds to wait for the replies of a round",
        bounds="(0, 604800]",
        when=_PROCESSES,
        identity=False,
    )


@dataclass
class Config:
    """One experiment. `model` and `data` are open groups: `_target_` names any importable callable."""

    rounds: int = option(20, "federated rounds", bounds="[1, 1000000]")
    clients: int = option(10, "number of clients", bounds="[1, 1000000]")
    names: list[str] = option([], "names of the clients, as their node configs say them; []: 0, 1, 2, ...")
    fraction: float = option(1.0, "share of the clients that take part in a round", bounds="(0, 1]")
    seed: int = option(
        0,
        "seed of partition, initialisation, sampling, batches and rounding; never of DP noise",
        bounds=f"[0, {2**63 - 1}]",
    )
    name: str = option("run", "label in the run folder's name", identity=False)
    evaluate: str = option(
        "server",
        "server: its test set, else (privacy=off) the clients' held-out examples; dp: noisy counts",
        choices=("server", "dp", "off"),
    )
    model: dict[str, Any] = option({}, "_target_: a callable that returns an nn.Module; other keys: its arguments")
    data: dict[str, Any] = option({}, "_target_: a callable that returns the data; other keys: its arguments")
    algorithm: dict[str, Any] = option(
        {"name": "fedavg"}, "name: fedavg, fedprox or scaffold; other keys: its options, e.g. algorithm.mu"
    )
    partition: Partition = field(default_factory=Partition)
    train: Train = field(default_factory=Train)
    quant: Quant = field(default_factory=Quant)
    privacy: Privacy = field(default_factory=Privacy)
    codec: Codec = field(default_factory=Codec)
    downlink: Downlink = field(default_factory=Downlink)
    strategy: Strategy = field(default_factory=Strategy)
    runtime: Runtime = field(default_factory=Runtime)

    # The overrides of this config and the folder of the user's choices: these cross processes, not objects.
    # Set by `compose`, never by a user.
    overrides: list[str] = field(default_factory=list)
    overlay: str | None = None


GROUPS = (
    "model",
    "data",
    "algorithm",
    "partition",
    "train",
    "quant",
    "privacy",
    "codec",
    "strategy",
    "runtime",
    "experiment",
)
# Mappings whose keys are arguments of the user's callables: a new key needs no `+`.
OPEN = (
    "model",
    "data",
    "algorithm",
    "train.optimizer_options",
    "privacy.budgets",
    "strategy.server_options",
    "strategy.weights",
    "runtime.client_resources",
)
