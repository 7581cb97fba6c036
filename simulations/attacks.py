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
from typing import Any

import numpy as np

import fedq
from fedq import codec, wire
from fedq.client import Client
from fedq.experiment import Experiment
from fedq.privacy import Declined
from fedq.randomness import generator
from fedq.results import markdown_table, replace_table
from fedq.runtime.start import check, execute
from simulations.recipe import ROOT

HOSTILE = "9"  # the last of ten clients
Update = np.ndarray  # float32, shape (layout.size,)


@dataclass(frozen=True)
class Lie:
    """What the hostile client sends in place of its honest update and weight."""

    update: Callable[[Update, np.random.Generator], Update] = lambda honest, random: honest
    num_examples: int | None = None  # None: the honest number


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
    "float16 overflow": Lie(overflow),
    "flipped and scaled": Lie(times(-1000)),
    "huge weight, long update": Lie(long, HUGE),
    "huge weight, flipped and scaled": Lie(times(-1000), HUGE),
    "huge weight, no update": Lie(times(0), HUGE),
}


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


def run(overrides: Sequence[str], lie: Lie | None) -> fedq.Result:
    """The experiment with the lie; None: without the hostile client."""
    built = check(overrides)
    attacked = Attacked(**{name: getattr(built, name) for name in _made_of(built)}, lie=lie)
    with tempfile.TemporaryDirectory() as scratch:
        return execute(attacked, root=Path(scratch), progress=False)


WORDS = ["experiment=demo", "quant=off"]
CLEAR, PRIVATE = ["privacy=off", "rounds=30"], ["rounds=60"]
WEIGHED = ["strategy.weighting=examples"]  # so that there is a weight to lie about
SETTINGS: dict[str, list[str]] = {
    "no bound": [*CLEAR, *WEIGHED, "strategy.max_update_norm=off", "strategy.max_weight=1e6"],
    "default": [*CLEAR, *WEIGHED],
    "median": [*CLEAR, "strategy.aggregate=median"],
    "trimmed_mean": [*CLEAR, "strategy.aggregate=trimmed_mean"],
    "default, epsilon 8": PRIVATE,
}
CASES: dict[str, Lie | None] = {"without the hostile client": None, "with it, honest": Lie(), **ATTACKS}
RESULTS = ROOT / "simulations" / "results" / "attacks.json"


def applies(case: str, setting: str) -> bool:
    """Under DP, and where all count the same, no reply carries a weight to lie about."""
    return "weight" not in case or setting in ("no bound", "default")


def main() -> None:
    found: dict[str, dict[str, float]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for setting, overrides in SETTINGS.items():
        for case, lie in CASES.items():
            if "--table" in sys.argv or case in found.setdefault(setting, {}) or not applies(case, setting):
                continue
            accuracy = run([*WORDS, *overrides], lie).accuracy
            found[setting][case] = float("nan") if accuracy is None else round(accuracy, 4)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{setting}, {case}: {found[setting][case]:.3f}", flush=True)
    rows = [[case, *(_cell(found[setting].get(case)) for setting in SETTINGS)] for case in CASES]
    table = markdown_table(["digits, 10 clients, one hostile", *SETTINGS], rows)
    replace_table(ROOT / "docs" / "threat-model.md", "attacks", table)
    print(table)


def _cell(accuracy: float | None) -> str:
    return "no weight to lie about" if accuracy is None else f"{100 * accuracy:.1f} %"


if __name__ == "__main__":
    main()
