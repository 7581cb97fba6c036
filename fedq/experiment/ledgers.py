"""Whether the clients' ledgers, where the user keeps them apart from the run, can be read and written."""

import tempfile
from pathlib import Path

from fedq.config import Config, Problem
from fedq.experiment.binding import told


def check_ledgers(config: Config, found: list[Problem]) -> None:
    """A problem where the folder cannot be written; leaves no trace."""
    if config.privacy.unit == "off" or config.privacy.ledger is None:
        return
    folder = Path(config.privacy.ledger)
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        rule = f"the clients' ledgers cannot be written there: {told(error)}"
        found.append(
            Problem("privacy.ledger", folder, rule, "Name a folder that can be written, or privacy.ledger=null")
        )
    for folder in made:
        if folder.exists():
            folder.rmdir()
