"""Whether the files of a ledger are such as SQLite and fedq leave; a run folder may come from another party.
Knows files; not rows, spends or budgets.

A journal that SQLite finds beside a database is undone when the database is opened, even to read it. One of a
transaction over several databases names the file that lists them, any file, and SQLite deletes that file. fedq never
writes such a transaction.
"""

import os
from pathlib import Path
from typing import Final

_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file (SQLite file format, 3)


def journal_beside(path: Path) -> Path:
    """What a crash inside a commit leaves."""
    return path.with_name(f"{path.name}-journal")


def odd_file(path: Path, tip: Path) -> str | None:
    """Why a ledger and what lies beside it may not be opened; None where they may."""
    for file in (path, tip, journal_beside(path)):
        if file.exists() and not file.is_file():
            return f"{file}: is no ordinary file; put the ledger's own file there"
    journal = journal_beside(path)
    if journal.exists():
        with journal.open("rb") as content:
            content.seek(max(0, journal.stat().st_size - len(_MAGIC)), os.SEEK_SET)
            if content.read() == _MAGIC:
                return (
                    f"{journal}: names another file, which SQLite would delete, and no ledger of fedq leaves such a "
                    "journal; do not trust this folder, and remove the journal to read the ledger"
                )
    return None
