"""The options of example-level and client-level DP. Knows how options are declared; no rules."""

from dataclasses import dataclass, field
from typing import Any

from fedq.config.option import When, option, renamed
from fedq.core import choices, limits

EPSILON = f"[{limits.LEAST_EPSILON:g}, {limits.MOST_EPSILON:g}]"
DELTA = f"[{limits.LEAST_DELTA:g}, {limits.MOST_DELTA:g}]"

_OFF = "privacy is off, so it would do nothing"
_OTHER = "privacy={value} adds its noise at the %s, so it would do nothing: it belongs to the other guarantee"
_PRIVATE = When("privacy.unit", unless=("off",), why=_OFF, fix="Add privacy=example")
_OF_EXAMPLES = (
    _PRIVATE,
    When("privacy.unit", ("example", "both"), why=_OTHER % "server", fix="Add privacy=both, or leave it out"),
)
_OF_CLIENTS = (
    When("privacy.unit", unless=("off",), why=_OFF, fix="Add privacy=client"),
    When("privacy.unit", ("client", "both"), why=_OTHER % "clients", fix="Add privacy=both, or leave it out"),
)


@dataclass
class ClientLevel:
    """Client-level DP: the trusted server clips updates and adds noise."""

    target_epsilon: float | None = option(
        None, "budget of client-level DP, over all rounds", bounds=EPSILON, when=_OF_CLIENTS, example=8
    )
    target_delta: float = option(
        1e-5, "delta of that guarantee; at most 1 / (10 clients)", bounds=DELTA, when=_OF_CLIENTS
    )
    noise_multiplier: float | None = option(
        None, "noise std over the clip; null: by the target", bounds="[0.01, 100000]", when=_OF_CLIENTS
    )
    clip_norm: float = option(
        1.0,
        "largest L2 norm of an update; the first one, if adaptive",
        bounds="[0.0001, 1000]",
        when=_OF_CLIENTS,
    )
    clipping: str = option(
        "fixed",
        "adaptive: the clip follows a quantile of the norms",
        choices=("fixed", "adaptive"),
        when=_OF_CLIENTS,
    )
    quantile: float = option(
        0.5,
        "share of the updates that are not clipped",
        bounds="(0, 1)",
        when=(
            *_OF_CLIENTS,
            When(
                "privacy.client.clipping",
                ("adaptive",),
                why="the clip is fixed",
                fix="Add privacy.client.clipping=adaptive",
            ),
        ),
    )
    sampling: str = option(
        "cyclic",
        "cohorts: cyclic (shuffled round-robin, no amplification) or poisson (secret, amplified)",
        choices=("cyclic", "poisson"),
        when=_OF_CLIENTS,
    )


@dataclass
class Privacy:
    unit: str = option(
        "off",
        "what DP protects: each example of each client, each client (client-level DP), or both",
        choices=("off", "example", "client", "both"),
    )
    target_epsilon: float | None = option(
        None, "budget of every client over the whole run", bounds=EPSILON, when=_OF_EXAMPLES, example=8
    )
    target_delta: float = option(
        1e-5, "delta of the guarantee; at most 1 / (10 nominal examples)", bounds=DELTA, when=_OF_EXAMPLES
    )
    budgets: Any = option(  # a mapping; Any, so that {0: 1} may be written for client 0
        {}, "client -> a stricter budget of its own (deployed: epsilon in its node config)", when=_OF_EXAMPLES
    )
    noise_multiplier: float | None = option(
        None,
        "noise std over clip_norm; null: calibrated to target_epsilon",
        bounds="[0.01, 100000]",
        when=_OF_EXAMPLES,
    )
    clip_norm: float = option(
        1.0, "largest L2 norm of one example's gradient", bounds="[1e-06, 1000000]", when=_OF_EXAMPLES
    )
    sample_rate: float | None = option(
        None,
        "public Poisson rate q; null: train.batch_size / nominal_examples",
        bounds="[1e-06, 1]",
        when=_OF_EXAMPLES,
        example=0.1,
    )
    nominal_examples: int | None = option(
        None,
        "public number of examples of a client; null: data.nominal_examples / clients",
        bounds="[1, inf)",
        when=_OF_EXAMPLES,
    )
    evaluation_epsilon: float = option(
        0.1,
        "epsilon of a client's noisy counts, once, at the end",
        bounds="[0.001, 10]",
        when=(*_OF_EXAMPLES, When("evaluate", ("dp",), why="evaluate={value}")),
    )
    accountant: str = option("prv", "accountant of epsilon; prv is tight", choices=choices.ACCOUNTANTS, when=_PRIVATE)
    noise: str = option(
        "discrete",
        "discrete (exact whole numbers) or gaussian (floats), keyed by the OS; seeded: discrete for tests, not private",
        choices=("discrete", "gaussian", "seeded"),
        when=_PRIVATE,
    )
    augmentations: int = option(
        1,
        "augmentation multiplicity: the mean gradient of so many versions is clipped (De et al. 2022)",
        bounds="[1, 256]",
        when=_OF_EXAMPLES,
    )
    augment: list[str] = option(
        ["flip", "shift"],
        "augmentations: flip (mirrored), shift (up to 2 pixels)",
        when=(
            *_OF_EXAMPLES,
            When(
                "privacy.augmentations",
                unless=(1,),
                why="privacy.augmentations=1 uses the image alone, so this option would do nothing",
                fix="Add privacy.augmentations=4",
            ),
        ),
    )
    ledger: str | None = option(
        None,
        "folder of ledgers for several runs; null: in the run folder",
        when=_PRIVATE,
        identity=False,
        holds="path",
    )
    client: ClientLevel = field(default_factory=ClientLevel)

    client_target_epsilon: Any = renamed("privacy.client.target_epsilon")
    client_target_delta: Any = renamed("privacy.client.target_delta")
    client_noise_multiplier: Any = renamed("privacy.client.noise_multiplier")
    client_clip_norm: Any = renamed("privacy.client.clip_norm")
    client_clipping: Any = renamed("privacy.client.clipping")
    client_quantile: Any = renamed("privacy.client.quantile")
    client_sampling: Any = renamed("privacy.client.sampling", {"deal": "cyclic"})
