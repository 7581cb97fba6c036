"""Checks that a ledger's files may be opened: a run folder may come from another party.
Knows files; not rows, spends or budgets.

SQLite rolls back a journal that lies beside a database as soon as the database is opened, even for reading. The journal
of a transaction over several databases names another file, which can be any file, and SQLite deletes that file. fedq
never writes such a transaction.
"""

import os
from pathlib import Path
from typing import Final

# The last bytes of a journal that names another file (SQLite file format, section 3).
_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")


def journal_beside(path: Path) -> Path:
    """The journal, which exists after a crash inside a commit."""
    return path.with_name(f"{path.name}-journal")


def file_fault(path: Path, tip: Path) -> str | None:
    """Why a ledger, its tip and its journal must not be opened; None if they may be opened."""
    for file in (path, tip, journal_beside(path)):
        if file.exists() and not file.is_file():
            return f"{file}: is not an ordinary file; put the ledger's own file there"
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
