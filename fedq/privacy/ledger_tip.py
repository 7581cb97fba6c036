"""The tip of a ledger: its number of rows and its last hash, kept in a second file.
Knows this file and its rules; not SQLite, spends or budgets.

The tip shows that the end of a ledger was cut off, or that an older copy of it was put back. It is written and synced
after the row and before `Ledger.spend` returns, under the same lock. A crash between the two leaves a ledger that is
longer than its tip says, never shorter. So a chain that is longer and goes through the tip's row is complete. A shorter
one has lost spends. Nobody notices where *both* files are replaced by older copies: keep this file on another disk.

On disk and in configs the tip has its first name, `head`: the file `ledger.sqlite.head`, the key `head-dir` of a node
config, the key `head` of a client's policy file, the option `--head`.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedq.core.durable import PRIVATE_FILE, make_private_folder, write_bytes

VERSION: Final = 1


class LedgerTipError(Exception):
    """The tip cannot be read, or the chain does not reach it. The text says which, and how to fix it."""


@dataclass(frozen=True)
class LedgerTip:
    """The length of the chain when it was last written, and the hash of its last row."""

    rows: int
    hash: str  # hex; the genesis hash where there is no row
    accepted: tuple[str, ...] = ()  # decisions of a person about a chain that did not check out, newest last

    def accepting(self, reason: str, chain: Sequence[str]) -> "LedgerTip":
        """The tip of `chain` (hashes: genesis, row 1, row 2, ...), which a person accepts although this tip differs."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # This line is stored in the file, so it keeps the file's word: head.
        said = f"{now} accepted {len(chain) - 1} rows where the head said {self.rows}: {reason}"
        return LedgerTip(len(chain) - 1, chain[-1], (*self.accepted, said))


def read_tip(path: Path) -> LedgerTip | None:
    """The tip in the file; None if there is no such file. Raises LedgerTipError if the file holds no tip."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerTipError(f"{path}: cannot be read: {error}") from error
    try:
        content: dict[str, Any] = json.loads(text)
        version = content.pop("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise LedgerTipError(f"{path}: version {version!r}, this fedq reads up to {VERSION}; update fedq")
        accepted = content["accepted"]
        if type(accepted) is not list or not all(type(said) is str for said in accepted):
            raise ValueError("accepted is not a list of texts")
        tip = LedgerTip(content["rows"], content["hash"], tuple(accepted))
        if type(tip.rows) is not int or tip.rows < 0 or type(tip.hash) is not str:
            raise ValueError("rows and hash are not a number and a text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerTipError(f"{path}: not the tip of a ledger ({error}); restore the file from a backup") from error
    return tip


def write_tip(path: Path, tip: LedgerTip) -> None:
    """Write the file in one atomic step and sync it to disk; raises OSError."""
    text = json.dumps({"version": VERSION, **asdict(replace(tip, accepted=tuple(tip.accepted)))}, indent=1)
    make_private_folder(path.parent)
    write_bytes(path, text.encode(), mode=PRIVATE_FILE)


def check_tip(path: Path, tip: LedgerTip, chain: Sequence[str]) -> None:
    """LedgerTipError unless `chain` (hashes: genesis, row 1, row 2, ...) reaches the tip and goes through it."""
    rows = len(chain) - 1
    if rows < tip.rows:
        raise LedgerTipError(
            f"the ledger has {rows} rows and its tip {path} says {tip.rows}: {tip.rows - rows} spends are missing "
            "(the end was cut off, or an older copy was put back)"
        )
    if chain[tip.rows] != tip.hash:
        raise LedgerTipError(
            f"row {tip.rows} is not the one that the tip {path} names: this is another ledger, or it was rewritten"
        )
