"""One client of ten lies about its update or its weight: what is left of the model's accuracy.

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

from fedq import codec, wire
from fedq.client import Client
from fedq.experiment import Experiment
from fedq.privacy import Declined
from fedq.randomness import generator
from fedq.results import markdown_table, replace_table
from fedq.runtime.start import check, execute
from simulations.recipe import RESULTS, ROOT, code_version

FILE = RESULTS / "attacks" / "accuracies.json"

HOSTILE = "9"  # the last of ten clients
Update = np.ndarray  # float32, shape (layout.size,)


@dataclass(frozen=True)
class Lie:
    """What the hostile client sends in place of its honest update and weight."""

    update: Callable[[Update, np.random.Generator], Update] = lambda honest, random: honest
    num_examples: int | None = None  # None: the honest number
    overrides: tuple[str, ...] = ()  # of a run that the lie is meant for


def times(factor: float) -> Callable[[Update, np.random.Generator], Update]:
    return lambda honest, random: (factor * honest).astype(np.float32)


def noise(honest: Update, random: np.random.Generator) -> Update:
    """As long as a hundred honest updates, in another direction in each round."""
    return _as_long_as(random.normal(size=honest.size), 100 * float(np.linalg.norm(honest)))


def long(honest: Update, random: np.random.Generator) -> Update:
    """In one direction in all rounds, and as long as the server's sums can take."""
    return _as_long_as(generator(0, "direction").normal(size=honest.size), 1e5)


def overflow(honest: Update, random: np.random.Generator) -> Update:
    """One value that float16 cannot hold once it is averaged."""
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
    "huge weight, flipped and scaled": Lie(times(-1000), HUGE),
}
SETTINGS = {
    "privacy=off": ["clients=10", "rounds=40", "train.lr=0.2"],
    # Epsilon 8. Seeded noise, so that a run and the same run without the hostile client differ in nothing else.
    "privacy=example": [
        *("privacy=example", "privacy.noise=seeded", "privacy.noise_multiplier=3", "privacy.sample_rate=0.5"),
        *("data.nominal_examples=1438", "data.validation_fraction=0", "privacy.accountant=rdp", "clients=10"),
        *("model.hidden=[32]", "model.activation=tanh", "model.standardize=example", "rounds=10"),
        *("train.epochs=null", "train.steps=8", "train.lr=1", "train.schedule=linear"),
    ],
}
RULES = {
    "no bound": ["strategy.max_update_norm=off"],
    "auto (default)": [],
    "median": ["strategy.aggregate=median"],
    "trimmed mean": ["strategy.aggregate=trimmed_mean"],
}
SEEDS = range(3)


class HostileClient(Client):
    """Trains as it should, and lies about the result; `lie` is set after it is made. None: it does not take part."""

    lie: Lie | None = None

    def train(self, request: wire.Request) -> wire.Reply:
        if self.lie is None:
            raise Declined("declined", "away")
        reply = super().train(request)
        packet = reply.packets[wire.UPDATE]
        header = codec.peek(packet)
        layout = self.trainer.layout
        update = self.lie.update(codec.decode(packet, layout), generator(1, "lie", request.round))
        told = codec.encode(
            update, self.codec, layout=layout, kind="delta", round=request.round, base=header.base, key=request.round
        )
        examples = self.lie.num_examples if reply.num_examples is not None else None
        return replace(reply, packets={wire.UPDATE: told}, num_examples=examples or reply.num_examples)


@dataclass
class Attacked(Experiment):
    """An experiment, one of whose clients is hostile."""

    lie: Lie | None = None

    def client(self, identity: str, **options: Any) -> Client:
        honest = super().client(identity, **options)
        if identity != HOSTILE:
            return honest
        hostile = HostileClient(**{name: getattr(honest, name) for name in _made_of(honest)})
        hostile.lie = self.lie
        return hostile


def _made_of(thing: Any) -> list[str]:
    return [name for name, field in type(thing).__dataclass_fields__.items() if field.init]


def accuracy(setting: str, rule: str, lie: Lie | None, *, seed: int, also: Sequence[str] = ()) -> float | None:
    """Of the run with this lie; without one, of the run without the hostile client. None: the run failed."""
    overrides = [*SETTINGS[setting], *RULES[rule], f"seed={seed}", "strategy.evaluate_every=1000", *also]
    built = check(overrides)
    attacked = Attacked(**{name: getattr(built, name) for name in _made_of(built)}, lie=lie)
    with tempfile.TemporaryDirectory() as scratch:
        result = execute(attacked, root=Path(scratch), progress=False)
    return result.accuracy if result.status == "finished" else None


def measured() -> dict[str, list[float | None]]:
    """Setting, rule and attack ("none": without the hostile client) -> accuracy by seed; runs what is missing."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if "--table" in sys.argv:
        return dict(kept["accuracies"])
    if kept.get("code_version") != code_version():
        kept = {"code_version": code_version(), "accuracies": {}}
    found: dict[str, list[float | None]] = kept["accuracies"]
    for label, (setting, rule, lie, also) in _runs().items():
        if label not in found:
            print(label, file=sys.stderr, flush=True)
            found[label] = [accuracy(setting, rule, lie, seed=seed, also=also) for seed in SEEDS]
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return found


def _runs() -> dict[str, tuple[str, str, Lie | None, tuple[str, ...]]]:
    runs: dict[str, tuple[str, str, Lie | None, tuple[str, ...]]] = {}
    for setting in SETTINGS:
        for rule in RULES:
            for also in sorted({lie.overrides for lie in ATTACKS.values()}):
                runs[_label(setting, rule, "none", also)] = (setting, rule, None, also)
            for name, lie in ATTACKS.items():
                runs[_label(setting, rule, name, lie.overrides)] = (setting, rule, lie, lie.overrides)
    return runs


def _label(setting: str, rule: str, attack: str, also: Sequence[str]) -> str:
    return " / ".join([setting, rule, attack, *also])


def _cell(with_lie: Sequence[float | None], without: Sequence[float | None]) -> str:
    """Mean difference in points, and the worst; the share of runs that failed, where some did."""
    pairs = [
        (one, other) for one, other in zip(with_lie, without, strict=True) if one is not None and other is not None
    ]
    if len(pairs) < len(with_lie):
        return f"{len(with_lie) - len(pairs)} of {len(with_lie)} runs failed"
    points = [100 * (one - other) for one, other in pairs]
    return f"{fmean(points):+.1f} ({min(points):+.1f})"


def main() -> None:
    found = measured()
    for setting in SETTINGS:
        bare = [[100 * a for a in found[_label(setting, rule, "none", ())] if a is not None] for rule in RULES]
        rows = [["none, 9 clients: accuracy", *(f"{fmean(values):.1f} %" for values in bare)]]
        for name, lie in ATTACKS.items():
            cells = [
                _cell(
                    found[_label(setting, rule, name, lie.overrides)],
                    found[_label(setting, rule, "none", lie.overrides)],
                )
                for rule in RULES
            ]
            rows.append([name, *cells])
        table = markdown_table([f"{setting}: attack", *RULES], rows)
        replace_table(ROOT / "docs" / "threat-model.md", f"attacks_{setting.partition('=')[2]}", table)
        print(table)


if __name__ == "__main__":
    main()
