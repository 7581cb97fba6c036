"""Writes PUBLISH.txt: which files of a DP run may be shown to others. Knows file names; opens no file.

A file that is not listed here must not be shown: the list names what a guarantee covers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import wrap
from typing import Final, Literal

from fedq.core.durable import write_bytes
from fedq.results import Result

PUBLISH: Final = "PUBLISH.txt"
Verdict = Literal["covered", "in part", "not covered"]
_TITLES: Final[dict[Verdict, str]] = {
    "covered": "Covered by the guarantee: may be shown.",
    "in part": "Covered except for the named parts: remove them first.",
    "not covered": "Not covered: only for the party that ran this.",
}
_TIMES: Final = ("seconds", "wall_seconds")  # times of steps depend on secret batches
_REFUSALS: Final = ("lost", "clients_lost", "reasons", "rejected", "accepted", "privacy_reasons", "status_reason")
UNKNOWN: Final = "fedq does not know this file"


@dataclass(frozen=True)
class Finding:
    """The verdict on a file, or on all files that match a pattern."""

    verdict: Verdict
    why: str


_ALWAYS: Final[Mapping[str, Finding]] = {
    PUBLISH: Finding("covered", "names of files"),
    "config.yaml": Finding("covered", "public configuration; look for paths and names of your own"),
    "model.safetensors": Finding("covered", "weights after the noise"),
    "model.onnx": Finding("covered", "the same weights as int8"),
    "clients/*/log.txt": Finding("not covered", "the true size of the client's shard, error texts"),
    "clients/*/ledger.sqlite*": Finding("not covered", "all spends of this data, and a digest of the data in its name"),
    "clients/*/evidence.jsonl": Finding("not covered", "only for the check of `private`"),
    "clients/*": Finding("not covered", "the client's own"),
    "server/ledger.sqlite*": Finding("not covered", "the server's account of all its runs"),
    "server/replies.jsonl": Finding("not covered", "who was asked, who answered, and why not"),
    "server/*": Finding("not covered", "the server's own"),
}


def write_publication(folder: Path, result: Result) -> None:
    """Write `PUBLISH.txt` into the folder of a run, if the run claims privacy."""
    if result.epsilon is not None:
        names = sorted({PUBLISH, *(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())})
        write_bytes(folder / PUBLISH, publication(names, result).encode())


def publication(names: list[str], result: Result) -> str:
    """The text of `PUBLISH.txt` for these paths in the run folder."""
    verdict = "yes" if result.private else f"NO, because {'; '.join(result.privacy_reasons) or 'no evidence was given'}"
    lines = [
        *wrap(f"Which files of this run may be shown to others. Protected: {result.privacy_unit}.", 100),
        *wrap(f"Private: {verdict}", 100, subsequent_indent="    "),
    ]
    if not result.private:
        lines += wrap("So nothing here is covered. The lists below would hold if all of these reasons were fixed.", 100)
    found = {name: finding(name, result) for name in names}
    for kind, title in _TITLES.items():
        under = [(name, said.why) for name, said in found.items() if said.verdict == kind]
        if under:
            lines += ["", title]
            for name, why in under:
                lines += wrap(f"  {name}: {why}", 100, subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def finding(name: str, result: Result) -> Finding:
    """The verdict on one file, by its path in the run folder."""
    for pattern, said in {**_figures(result), **_ALWAYS}.items():
        if fnmatchcase(name, pattern):
            return said
    return Finding("not covered", UNKNOWN)


def _figures(result: Result) -> dict[str, Finding]:
    """The verdicts on files with figures that are covered in part."""
    if not result.client_level:
        keys = (*_TIMES, *_REFUSALS)
        why = "times depend on secret batches, and a client may fail because of its data"
        curves = Finding("in part", "the duration in its heading")
    else:
        keys = tuple(dict.fromkeys((*result.client_level["not_covered"], *_TIMES, *_REFUSALS)))
        why = "they depend on who answered, and when"
        curves = Finding("not covered", "the bytes that clients sent depend on who answered")
    part = Finding("in part", f"without {', '.join(keys)}: {why}")
    return {"result.json": part, "rounds.jsonl": part, "curves.png": curves}
