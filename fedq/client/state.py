"""What a client keeps between rounds. Knows files; not models, packets or messages.

In simulation it lives with the run: the ledger and the evidence on disk, the residual in the process that
serves the client in every round.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedq.client.residual import Residual
from fedq.privacy import DPEvidence

EVIDENCE, LOG = "evidence.jsonl", "log.txt"


class ClientState:
    """One client's residual (what compression lost), evidence of noise, and its log."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._residual = Residual()

    def residual(self, accepted: int) -> np.ndarray | None:
        """What was lost so far, given the last round in which the server accepted an update of this client."""
        return self._residual.counted(accepted)

    def commit(self, round: int, before: np.ndarray | None, after: np.ndarray | None) -> None:
        """Keep both outcomes of the update that is about to leave."""
        self._residual = Residual(round, before, after)

    def note_evidence(self, round: int, evidence: DPEvidence) -> None:
        """What the noise-adding code says that it did, one JSON line a participation. Never leaves the client."""
        if self.folder is not None:
            self._append(EVIDENCE, json.dumps({"round": round, **asdict(evidence)}))

    def log(self, line: str) -> None:
        """For the client's own operator."""
        if self.folder is not None:
            self._append(LOG, line)

    def _append(self, name: str, line: str) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")
