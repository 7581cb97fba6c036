"""The typed options of an experiment: names, types, defaults and help lines. Knows no rules and no Hydra.

A group's class holds the options of all its choices: with one schema per choice,
`experiment=demo privacy=off` would fail on the options that the demo sets for `privacy=example`.
Plain dataclasses, since OmegaConf raises `ReadonlyConfigError` on frozen ones.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, meaning: str, *, holds: Literal["value", "path"] = "value") -> Any:
    """A dataclass field with the line that `fedq run --help` shows for it.

    `holds="path"`: a path that is opened or written. Such a key never comes from a network.
    """
    metadata = {"help": meaning, "holds": holds}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Partition:
    name: str = option("iid", "partition of the examples over clients: iid, dirichlet, by_column")
    alpha: float = option(0.5, "dirichlet: concentration; smaller is more skewed (Hsu et al. 2019)")
    min_size: int = option(10, "dirichlet: the fewest examples that a client may hold")


@dataclass
class Train:
    epochs: float | None = option(None, "local passes over the shard in a round (or set train.steps)")
    steps: int | None = option(None, "local optimizer steps in a round (or set train.epochs)")
    batch_size: int = option(32, "examples in a batch; the expected number under DP")
    optimizer: str = option("SGD", "client optimizer: any class of torch.optim by name")
    lr: float = option(0.1, "client learning rate in the first round")
    optimizer_options: dict[str, Any] = option({}, "other arguments of the optimizer, e.g. momentum")
    schedule: str = option("constant", "learning rate over the rounds: constant, linear, cosine")
    clip_grad: float | None = option(None, "largest L2 norm of a batch gradient (privacy=off only)")
    loss: str = option("cross_entropy", "cross_entropy, binary_cross_entropy, mse, l1, huber")
    metric: str = option("accuracy", "accuracy, multilabel_accuracy, r2, mse, mae")
    holdout: float = option(
        0.2, "share of a shard held out for evaluation: without a test set at the server, or with evaluate=dp"
    )
    device: str = option("auto", "device of local training: auto (cuda or mps where there is one), cpu, cuda, mps")
    compile: bool = option(False, "torch.compile the training step: 6 to 30 s once; meant for GPUs, slower on CPUs")
    data_parallel: bool = option(False, "split each batch over all GPUs of the machine (privacy=off only)")
    autocast: str = option("off", "off or bf16: matrix products of the forward pass in bfloat16")


@dataclass
class Quant:
    name: str = option("off", "off, int8, int4 or ternary")
    weight_bits: int = option(8, "bits of a weight: 8, 4 or 2 (ternary: -1, 0, 1)")
    granularity: str = option("channel", "values that share one weight step: channel (of the output) or tensor")
    weight_rounding: str = option("nearest", "weights in training: nearest or stochastic (delivered ones: nearest)")
    activation_bits: int = option(8, "bits of an activation: 8 or 4")
    activations: str = option(
        "fixed", "activation ranges: fixed, learned, observed (refused under DP), dynamic (training only), off"
    )
    weight_range: int | None = option(
        None, "largest 8-bit weight level; null: 63, exact on every CPU (127 only with VNNI or ARM)"
    )
    activation_range: float = option(8.0, "fixed (or first) range of activations without a natural bound")
    input_range: float = option(4.0, "fixed range of the model's input")
    calibration: str | None = option(
        None, "dynamic: .npy file of public inputs that give the export its ranges", holds="path"
    )
    skip: list[str] = option([], "name patterns of layers that stay float")
    sparsity: float | None = option(None, "target share of zeros among all large weights; null: dense")
    sparsity_begin: float = option(0.1, "share of the rounds after which pruning begins")
    sparsity_end: float = option(0.6, "share of the rounds after which the sparsity is reached")


@dataclass
class Privacy:
    unit: str = option("off", "unit of DP: off, example (each example of each client), client (client-level DP), both")
    target_epsilon: float | None = option(None, "budget of every client over the whole run")
    target_delta: float = option(1e-5, "delta of the guarantee; at most 1e-3 and 1 / (10 nominal examples)")
    budgets: Any = option(  # a mapping; Any, so that {0: 1} may be written for client 0
        {}, "client -> a stricter budget of its own (deployed: epsilon in its node config)"
    )
    noise_multiplier: float | None = option(None, "noise std over clip_norm; null: calibrated to target_epsilon")
    clip_norm: float = option(1.0, "largest L2 norm of one example's gradient")
    sample_rate: float | None = option(None, "public Poisson rate q; null: train.batch_size / nominal_examples")
    nominal_examples: int | None = option(
        None, "public number of examples of a client; null: data.nominal_examples / clients"
    )
    evaluation_epsilon: float = option(0.1, "evaluate=dp: epsilon of a client's noisy counts, once, at the end")
    accountant: str = option("prv", "prv (tight) or rdp")
    noise: str = option(
        "discrete",
        "discrete (exact whole numbers) or gaussian (floats), keyed by the OS; seeded: discrete for tests, not private",
    )
    augmentations: int = option(
        1, "augmentation multiplicity: the mean gradient of so many versions is clipped (De et al. 2022)"
    )
    augment: list[str] = option(["flip", "shift"], "augmentations: flip (mirrored), shift (up to 2 pixels)")
    ledger: str | None = option(None, "folder of ledgers for several runs; null: in the run folder", holds="path")
    client_target_epsilon: float | None = option(None, "client: budget of client-level DP, over all rounds")
    client_target_delta: float = option(1e-5, "client: delta of that guarantee; at most 1e-3 and 1 / (10 clients)")
    client_noise_multiplier: float | None = option(None, "client: noise std over the clip; null: by the target")
    client_clip_norm: float = option(1.0, "client: largest L2 norm of an update; the first one, if adaptive")
    client_clipping: str = option("fixed", "client: fixed, or adaptive (the clip follows a quantile of the norms)")
    client_quantile: float = option(0.5, "client, adaptive: share of the updates that are not clipped")
    client_sampling: str = option(
        "deal", "client: deal (shuffled round-robin, no amplification) or poisson (secret cohorts, amplified)"
    )


@dataclass
class Codec:
    name: str = option("float32", "update on the wire: float32, float16, int8, int4, int2, sign, topk, randk")
    block: int | None = option(None, "values that share one scale; null: 256 (int8, int4), 1024, or 4096 with rotate")
    rounding: str | None = option(None, "nearest, stochastic or lloyd_max; null: lloyd_max with rotate, else nearest")
    rotate: bool = option(False, "randomized Hadamard rotation first: outliers cost less, 1 to 4 bits are unbiased")
    fraction: float = option(0.01, "topk, randk: share of the values that is sent")
    feedback: bool = option(False, "error feedback: add the codec's error to the next update")
    entropy: bool = option(False, "deflate the levels: lossless, fewer bytes where levels are unequally frequent")


@dataclass
class Downlink(Codec):
    """The codec of the model that the server sends, and whether it carries weights or changes."""

    name: str | None = option(None, "the model on the wire; null: as codec where that is precise enough, else int8")  # type: ignore[assignment]
    kind: str = option("weights", "weights (each packet is complete) or delta (changes since the client's last model)")


@dataclass
class Strategy:
    name: str = option("fedavg", "aggregation: fedavg")
    server: str = option(
        "SGD", "server optimizer over the aggregate: any class of torch.optim; SGD with lr 1 is FedAvg"
    )
    server_lr: float = option(1.0, "server learning rate")
    server_options: dict[str, Any] = option({}, "other arguments of the server optimizer")
    weighting: str = option(
        "examples",
        "weight of a client: examples (in a deployment as strategy.weights says), or equal (always so under DP)",
    )
    weights: Any = option(  # a mapping; Any, so that {0: 1} may be written for client 0
        {},
        "client -> its number of examples, for every client; {}: from the partition, in a simulation",
    )
    min_clients: int = option(1, "fewest accepted replies; with fewer the round is skipped, the model unchanged")
    max_weight: float | None = option(None, "largest weight of a client; null: no limit")
    max_update_norm: Any = option(  # a number or a word
        "auto",
        "longest update, longer ones are scaled down: a number (L2 norm), off, or auto (twice the median of the last "
        "rounds; under DP-SGD 1.25 times, and never beyond what its public numbers allow)",
    )
    aggregate: str = option(
        "mean", "mean (weighted), or against lying clients: median, trimmed_mean (of each coordinate, unweighted)"
    )
    trim: float = option(0.2, "trimmed_mean: share of updates left out at each end, at least that of lying clients")
    evaluate_every: int = option(1, "rounds between evaluations (the last five are always evaluated)")
    keep: str = option("last", "model that is kept: last, or best on the validation set")
    ema: float | None = option(
        None, "decay a round of a moving average of the models, which is evaluated and kept instead; null: none"
    )


@dataclass
class Runtime:
    name: str = option("local", "where the apps run: local, ray, deployment")
    workers: int = option(1, "local: processes that train clients; 1 is this process")
    address: str | None = option(None, "ray: address of an existing cluster; null: start a cluster here for this run")
    client_resources: dict[str, Any] = option({}, "ray: resources of one client; {} means num_cpus: 1, num_gpus: 0")
    connection: str | None = option(None, "deployment: SuperLink connection in Flower's config.toml; null: its default")
    insecure: bool = option(
        False, "deployment: allow a connection without encryption or without certificates (--insecure)"
    )
    wait: float = option(300.0, "ray, deployment: seconds to wait for all clients before round 1")
    min_available: int | None = option(None, "ray, deployment: fewest clients to begin with after the wait; null: all")
    timeout: float = option(3600.0, "ray, deployment: seconds to wait for the replies of a round")


@dataclass
class Config:
    """One experiment. `model` and `data` are open groups: `_target_` names any importable callable."""

    rounds: int = option(20, "federated rounds")
    clients: int = option(10, "number of clients")
    names: list[str] = option([], "names of the clients, as their node configs say them; []: 0, 1, 2, ...")
    fraction: float = option(1.0, "share of the clients that take part in a round")
    seed: int = option(0, "seed of partition, initialisation, sampling, batches and rounding; never of DP noise")
    name: str = option("run", "label in the run folder's name; not part of the experiment's identity")
    evaluate: str = option(
        "server", "server: its test set, else (privacy=off) the clients' held-out examples; dp: noisy counts; off"
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
