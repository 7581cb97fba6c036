"""Commands to try after a run. Knows a result and its overrides; runs nothing."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedq.results.result import Result

FOLD = 76  # longest line of a command, in characters


class Step(NamedTuple):
    """A command that a user can paste, and the reason for it."""

    command: str
    why: str


def next_steps(result: Result, overrides: Sequence[str] = ()) -> list[Step]:
    """Commands for the run without one of its parts, for another seed, and for the use of the model."""
    again = list(overrides)
    steps = []
    if result.epsilon is not None:
        steps.append(Step(_fedq_run(again, privacy="off"), "the same run without privacy: what its noise costs"))
    elif result.int8_model_bytes is not None or 2 * result.bytes_up < result.float32_bytes_up:
        # Without its own options the downlink follows the codec.
        off = _fedq_run(_without(again, "downlink"), quant="off", codec="float32")
        steps.append(Step(off, "the same run as plain float32 FedAvg: what int8 costs"))
    else:
        steps.append(Step(_fedq_run(again, codec="int8"), "the same run with int8 updates: a quarter of the bytes"))
    steps.append(Step(_fedq_run(again, seed=str(result.seed + 1)), "another seed: how far chance alone moves it"))
    if result.folder is not None and result.int8_model_bytes is not None:
        call = f"fedq.load({shown_path(result.folder)!r})"
        steps.append(Step(call, "in Python: the int8 model, a callable over arrays"))
    return steps


def _fedq_run(overrides: Sequence[str], **changed: str) -> str:
    # The options of a replaced part are removed too: privacy=off privacy.target_epsilon=8 is an error.
    kept = _without(overrides, *changed)
    return _folded(
        [shlex.quote(word) for word in ["fedq", "run", *kept, *(f"{key}={value}" for key, value in changed.items())]]
    )


def _without(overrides: Sequence[str], *groups: str) -> list[str]:
    return [word for word in overrides if word.split("=")[0].lstrip("+~").split(".")[0].split("@")[0] not in groups]


def shown_path(path: Path) -> str:
    """The path, relative if it lies below the current directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _folded(words: Sequence[str]) -> str:
    """One shell command, folded into lines that fit a screen of 80 columns."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > FOLD - 3:  # a blank before the word, a blank and a backslash after it
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)
