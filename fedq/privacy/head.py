"""The end of a ledger's chain, kept in a second file, so that a tail cut off or an older copy put back shows.
Knows the file and its rules; not SQLite, spends or budgets.

Written and synced after the row and before `spend` returns, under one lock: a crash between the two leaves a ledger
that is longer than its head says, never shorter. So a longer chain that holds the head's row is whole; a shorter one
has lost spends. Whoever can put back an older copy of *both* files is not seen: keep this one on another disk
(`head=` of a client's policy file).
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedq.core.durable import PRIVATE_FILE, make_private_folder, write_bytes

VERSION: Final = 1


class HeadError(Exception):
    """The head cannot be read, or the chain does not reach it; the text says which and how to fix it."""


@dataclass(frozen=True)
class Head:
    """How long the chain was when it was last written, and the hash of its last row."""

    rows: int
    hash: str  # hex; of the ledger's identity where there is no row
    accepted: tuple[str, ...] = ()  # what a person decided about a chain that did not check out, newest last

    def decided(self, reason: str, chain: Sequence[str]) -> "Head":
        """The head of `chain` (hashes: genesis, row 1, row 2, ...), which a person accepts though this head differs."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        said = f"{now} accepted {len(chain) - 1} rows where the head said {self.rows}: {reason}"
        return Head(len(chain) - 1, chain[-1], (*self.accepted, said))


def read_head(path: Path) -> Head | None:
    """The head, or None where there is no such file; HeadError where it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HeadError(f"{path}: cannot be read: {error}") from error
    try:
        content: dict[str, Any] = json.loads(text)
        version = content.pop("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise HeadError(f"{path}: version {version!r}, this fedq reads up to {VERSION}; update fedq")
        accepted = content["accepted"]
        if type(accepted) is not list or not all(type(said) is str for said in accepted):
            raise ValueError("accepted is not a list of texts")
        head = Head(content["rows"], content["hash"], tuple(accepted))
        if type(head.rows) is not int or head.rows < 0 or type(head.hash) is not str:
            raise ValueError("rows and hash are not a number and a text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HeadError(f"{path}: not the head of a ledger ({error}); put back what stood there") from error
    return head


def write_head(path: Path, head: Head) -> None:
    """Whole or not at all, and synced."""
    text = json.dumps({"version": VERSION, **asdict(replace(head, accepted=tuple(head.accepted)))}, indent=1)
    make_private_folder(path.parent)
    write_bytes(path, text.encode(), mode=PRIVATE_FILE)


def check_head(path: Path, head: Head, chain: Sequence[str]) -> None:
    """HeadError unless `chain` (hashes: genesis, row 1, row 2, ...) reaches the head and goes through it."""
    rows = len(chain) - 1
    if rows < head.rows:
        raise HeadError(
            f"the ledger has {rows} rows and its head {path} says {head.rows}: {head.rows - rows} spends are missing "
            "(a tail was cut off, or an older copy put back)"
        )
    if chain[head.rows] != head.hash:
        raise HeadError(f"row {head.rows} is not the one that the head {path} names: another ledger, or rewritten")
