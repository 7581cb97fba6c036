"""The accuracy of a model when one client of ten lies about its update or its weight.

python -m simulations.attacks            runs what is missing, writes the table of docs/threat-model.md
python -m simulations.attacks --table    writes the table from the committed results
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fedq import codec
from fedq.client import Client
from fedq.console import markdown_table, replace_table
from fedq.core.randomness import generator
from fedq.experiment import Experiment
from fedq.flower import wire
from fedq.privacy import Declined
from fedq.runtime.start import check, execute
from simulations.recipe import RESULTS, ROOT, code_version

FILE = RESULTS / "attacks.json"

HOSTILE = "9"  # the last of ten clients
Update = np.ndarray  # float32, shape (layout.size,)


@dataclass(frozen=True)
class Lie:
    """The update and weight that the hostile client sends instead of its honest ones."""

    update: Callable[[Update, np.random.Generator], Update] = lambda honest, random: honest
    num_examples: int | None = None  # None: the honest number
    overrides: tuple[str, ...] = ()  # of a run in which the lie has an effect


def times(factor: float) -> Callable[[Update, np.random.Generator], Update]:
    return lambda honest, random: (factor * honest).astype(np.float32)


def noise(honest: Update, random: np.random.Generator) -> Update:
    """An update as long as a hundred honest ones, in another direction in each round."""
    return _as_long_as(random.normal(size=honest.size), 100 * float(np.linalg.norm(honest)))


def long(honest: Update, random: np.random.Generator) -> Update:
    """An update in the same direction in all rounds, as long as the server's sums can hold."""
    return _as_long_as(generator(0, "direction").normal(size=honest.size), 1e5)


def overflow(honest: Update, random: np.random.Generator) -> Update:
    """An update with one value whose average float16 cannot hold."""
    update = honest.copy()
    update[0] = 2e6
    return update


def _as_long_as(direction: np.ndarray, length: float) -> Update:
    return (direction * (length / np.linalg.norm(direction))).astype(np.float32)


HUGE = 10**6
ATTACKS: dict[str, Lie] = {
    "sign flip": Lie(times(-1)),
    "scaling": Lie(times(1000)),
    "noise": Lie(noise),
    "huge weight": Lie(num_examples=HUGE),
    "long update": Lie(long),
    "float16 overflow": Lie(overflow, overrides=("downlink.name=float16",)),
    "flipped and scaled": Lie(times(-1000)),
    "huge weight, long update": Lie(long, HUGE),
}
_CLEAR = ["experiment=demo", "quant=off", "privacy=off", "rounds=30"]
_WEIGHED = [*_CLEAR, "strategy.weighting=examples"]
# Epsilon 8. The noise is seeded, so that runs with and without the hostile client differ in nothing else.
_PRIVATE = [
    *("privacy=example", "privacy.noise=seeded", "privacy.noise_multiplier=3", "privacy.sample_rate=0.5"),
    *("data.nominal_examples=1438", "data.validation_fraction=0", "privacy.accountant=rdp", "clients=10"),
    *("model.hidden=[32]", "model.activation=tanh", "model.standardize=example", "rounds=10"),
    *("train.epochs=null", "train.steps=8", "train.lr=1", "train.schedule=linear"),
]
SETTINGS: dict[str, list[str]] = {
    "no bound": [*_WEIGHED, "strategy.max_update_norm=off"],
    "default": _WEIGHED,
    "median": [*_CLEAR, "strategy.aggregate=median"],
    "trimmed_mean": [*_CLEAR, "strategy.aggregate=trimmed_mean"],
    "epsilon 8, no bound": [*_PRIVATE, "strategy.max_update_norm=off"],
    "epsilon 8, default": _PRIVATE,
    "epsilon 8, median": [*_PRIVATE, "strategy.aggregate=median"],
}
SEEDS = range(3)


class HostileClient(Client):
    """A client that trains honestly and lies about the result. `lie`: set later; None: it does not take part."""

    lie: Lie | None = None

    def train(self, request: wire.Request, *, paid: int | None = None) -> wire.Reply:
        if self.lie is None:
            raise Declined("policy", "away")
        reply = super().train(request, paid=paid)
        packet = reply.packets[wire.UPDATE]
        header = codec.peek(packet)
        layout = self.trainer.layout
        update = self.lie.update(codec.decode(packet, layout), generator(1, "lie", request.round))
        packet_sent = codec.encode(
            update, self.codec, layout=layout, kind="delta", round=request.round, base=header.base, key=request.round
        )
        examples = self.lie.num_examples if reply.num_examples is not None else None
        return replace(reply, packets={wire.UPDATE: packet_sent}, num_examples=examples or reply.num_examples)


@dataclass
class Attacked(Experiment):
    """An experiment with one hostile client."""

    lie: Lie | None = None

    def client(self, identity: str, **options: Any) -> Client:
        honest = super().client(identity, **options)
        if identity != HOSTILE:
            return honest
        hostile = HostileClient(**{name: getattr(honest, name) for name in _field_names(honest)})
        hostile.lie = self.lie
        return hostile


def _field_names(instance: Any) -> list[str]:
    return [name for name, field in type(instance).__dataclass_fields__.items() if field.init]


def accuracy(overrides: Sequence[str], lie: Lie | None) -> float | None:
    """Accuracy of the run with this lie, or without the hostile client if `lie` is None; None: the run failed."""
    built = check(overrides)
    attacked = Attacked(**{name: getattr(built, name) for name in _field_names(built)}, lie=lie)
    with tempfile.TemporaryDirectory() as scratch:
        result = execute(attacked, root=Path(scratch))
    return result.accuracy if result.status == "finished" else None


def measured() -> dict[str, list[float | None]]:
    """Setting and attack ("none": without the hostile client) -> accuracy by seed; runs what is missing."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if "--table" in sys.argv:
        return dict(kept["accuracies"])
    if kept.get("code_version") != code_version():
        kept = {"code_version": code_version(), "accuracies": {}}
    found: dict[str, list[float | None]] = kept["accuracies"]
    for label, (overrides, lie) in _runs().items():
        if label not in found:
            print(label, file=sys.stderr, flush=True)
            found[label] = [accuracy([*overrides, f"seed={seed}"], lie) for seed in SEEDS]
            FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return found


def _runs() -> dict[str, tuple[list[str], Lie | None]]:
    """Label -> (overrides, lie), for every cell and for its reference run."""
    runs: dict[str, tuple[list[str], Lie | None]] = {}
    for setting, overrides in SETTINGS.items():
        for name, lie in ATTACKS.items():
            if _applies(lie, setting):
                runs[_label(setting, "none", lie)] = ([*overrides, *lie.overrides], None)
                runs[_label(setting, name, lie)] = ([*overrides, *lie.overrides], lie)
    return runs


def _label(setting: str, attack: str, lie: Lie) -> str:
    return " / ".join([setting, attack, *lie.overrides])


def _applies(lie: Lie, setting: str) -> bool:
    """Whether the lie has an effect: with equal weights a client cannot lie about its weight."""
    return lie.num_examples is None or "strategy.weighting=examples" in SETTINGS[setting]


def _cell(found: dict[str, list[float | None]], setting: str, name: str, lie: Lie) -> str:
    """Mean difference in points, and the largest loss."""
    if not _applies(lie, setting):
        return "no weight"
    if not {_label(setting, name, lie), _label(setting, "none", lie)} <= found.keys():
        return "not run"
    pairs = zip(found[_label(setting, name, lie)], found[_label(setting, "none", lie)], strict=True)
    points = [100 * (one - other) for one, other in pairs if one is not None and other is not None]
    return f"{fmean(points):+.1f} ({min(points):+.1f})" if len(points) == len(SEEDS) else "a run failed"


def main() -> None:
    found = measured()
    without = [found.get(_label(setting, "none", Lie()), []) for setting in SETTINGS]
    shown = [f"{100 * fmean(filter(None, bare)):.1f} %" if any(bare) else "not run" for bare in without]
    rows = [["accuracy without the hostile client", *shown]]
    for name, lie in ATTACKS.items():
        rows.append([name, *(_cell(found, setting, name, lie) for setting in SETTINGS)])
    table = markdown_table(["digits, 10 clients, one hostile", *SETTINGS], rows)
    replace_table(ROOT / "docs" / "threat-model.md", "attacks", table)
    print(table)


if __name__ == "__main__":
    main()
