"""The unit of privacy, and rules about client-level DP. Knows the schema; not noise, ledgers or the server."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from fedq.config import deltas
from fedq.config.problem import Problem
from fedq.config.public import LEAST_EPSILON, MOST_EPSILON
from fedq.config.schema import Config, Privacy

UNITS = ("off", "example", "client", "both")
CHOICES: dict[str, tuple[str | int, ...]] = {
    "privacy.client_clipping": ("fixed", "adaptive"),
    "privacy.client_sampling": ("deal", "poisson"),
}
BOUNDS: dict[str, tuple[float, float, bool, bool]] = {
    "privacy.client_target_epsilon": (LEAST_EPSILON, MOST_EPSILON, True, True),
    "privacy.client_target_delta": deltas.BOUNDS,
    "privacy.client_noise_multiplier": (0.01, 1e5, True, True),
    "privacy.client_clip_norm": (1e-4, 1e3, True, True),
    "privacy.client_quantile": (0, 1, False, False),
}
KEYS = tuple(f.name for f in fields(Privacy) if f.name.startswith("client_"))
_SHARED = ("unit", "accountant", "noise", "ledger")  # options of both guarantees


def protects_examples(config: Config) -> bool:
    """Whether example-level DP is on: each client trains with DP-SGD, which protects examples from the server too."""
    return config.privacy.unit in ("example", "both")


def protects_clients(config: Config) -> bool:
    """Whether client-level DP is on: the trusted server adds the noise."""
    return config.privacy.unit in ("client", "both")


def epsilon_budget(config: Config) -> float | None:
    """The target of the epsilon that rounds report; None: privacy is off, or has no budget."""
    if protects_examples(config):
        return config.privacy.target_epsilon
    return config.privacy.client_target_epsilon if protects_clients(config) else None


def client_level_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the options of client-level DP."""
    if not protects_clients(config):
        return
    p = config.privacy
    if p.client_target_epsilon is None and p.client_noise_multiplier is None:
        rule = "under client-level DP, a budget or a noise multiplier must be set"
        yield Problem("privacy.client_target_epsilon", None, rule, "Use privacy.client_target_epsilon=8")
    yield from deltas.delta_problems(
        "privacy.client_target_delta", p.client_target_delta, protected=config.clients, of="client"
    )
    if config.strategy.min_clients > 1:
        rule = "a skipped round would reveal who answered, so every round must take its noised step"
        yield Problem("strategy.min_clients", config.strategy.min_clients, rule, "Use strategy.min_clients=1")
    if config.downlink.kind == "delta":
        rule = (
            "changes are sent only after a first accepted update: a client could see from its message whether another "
            f"client's update was accepted, which no noise hides (privacy={p.unit})"
        )
        yield Problem("downlink.kind", "delta", rule, "Use downlink.kind=weights")
    if p.client_sampling == "poisson":
        yield from _poisson_problems(config)


def _poisson_problems(config: Config) -> Iterator[Problem]:
    key, fix = "privacy.client_sampling", "Use privacy.client_sampling=deal"
    if config.fraction == 1:
        yield Problem(key, "poisson", "with fraction=1 every client is in every round, so no client is sampled", fix)
    if protects_examples(config):
        rule = (
            "a client may be drawn in every round, and the noise on its examples is calibrated to fewer (privacy=both)"
        )
        yield Problem(key, "poisson", rule, fix)


def idle_privacy(config: Config) -> list[tuple[Sequence[str], bool, str, str]]:
    """Options of a guarantee that is off: (keys, whether they apply, why not, the fix)."""
    p = config.privacy
    names = [f.name for f in fields(Privacy)]
    examples = [f"privacy.{name}" for name in names if name not in (*KEYS, *_SHARED)]
    clients = [f"privacy.{name}" for name in KEYS]
    shared = [f"privacy.{name}" for name in _SHARED[1:]]
    off = "privacy is off, so it would do nothing"
    only = "so it would do nothing: it belongs to the other guarantee"
    of_clients = f"privacy={p.unit} adds its noise at the server, {only}"
    of_examples = f"privacy={p.unit} adds its noise at the clients, {only}"
    return [
        (shared, p.unit != "off", off, "Add privacy=example"),
        (examples, protects_examples(config), *_why(p.unit, off, of_clients, "example")),
        (clients, protects_clients(config), *_why(p.unit, off, of_examples, "client")),
        (
            ("privacy.client_quantile",),
            not protects_clients(config) or p.client_clipping == "adaptive",
            "the clip is fixed",
            "Add privacy.client_clipping=adaptive",
        ),
    ]


def _why(unit: str, off: str, other: str, wanted: str) -> tuple[str, str]:
    return (off, f"Add privacy={wanted}") if unit == "off" else (other, "Add privacy=both, or leave it out")
