"""What a client keeps between rounds. Knows files; not models, packets or messages.

In simulation it lives with the run: the ledger and the evidence on disk, the residual and the weights in the process
that serves the client in every round. Where each message meets a new process (a deployment, Ray) they are on disk too.
"""

import datetime
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedq.client.residual import Residual, Versions
from fedq.core.durable import PRIVATE_FILE, append_to_private, make_private_folder, write_bytes
from fedq.privacy import DPEvidence

EVIDENCE, LOG, STATE, DECLINED = "evidence.jsonl", "log.txt", "state.npz", "declined.log"
_VERSION = 2
_BEFORE, _AFTER = "algorithm.before.", "algorithm.after."
Vectors = Mapping[str, np.ndarray]  # the named vectors of a federated algorithm, such as a control variate


def note_declined(folder: Path, run: str, why: str) -> None:
    """For the owner: a request that was turned away, and why, one line each. Never leaves."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with append_to_private(folder / DECLINED) as file:
        file.write(f"{now} {run!r} {' '.join(why.split())}\n")


class StateError(RuntimeError):
    """The client's own files cannot be read or trusted; a person has to look at them."""


class ClientState:
    """One client's residual (what compression lost), the weights it was sent, evidence of noise and log, of one run.

    `durable`: both are written and synced before the update leaves, and read again by the next process.
    """

    def __init__(self, folder: Path | None = None, *, durable: bool = False) -> None:
        if durable and folder is None:
            raise ValueError("durable=True needs a folder to write to")
        self.folder, self._durable = folder, durable
        self.owner: tuple[Path, str] | None = None  # where the owner looks for refusals of every run, this run's name
        self._residual = Residual()
        self._algorithm = Versions[Vectors]()
        self._weights: np.ndarray | None = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One message at a time: a redelivered one waits until the first has written its files."""
        if not self._durable:
            yield
            return
        from filelock import FileLock

        assert self.folder is not None
        make_private_folder(self.folder)
        with FileLock(self.folder / ".lock", mode=PRIVATE_FILE):
            self._load()
            yield

    @property
    def round(self) -> int:
        """The last round whose update left something to keep; -1: none."""
        return self._residual.round

    @property
    def weights(self) -> np.ndarray | None:
        """The weights that were sent last, if they are kept."""
        return self._weights

    def residual(self, accepted: int) -> np.ndarray | None:
        """What was lost so far, given the last round in which the server accepted an update of this client."""
        return self._residual.counted(accepted)

    def algorithm(self, accepted: int) -> Vectors:
        """The algorithm's state to go on from, given the same; empty at the start."""
        return self._algorithm.counted(accepted) or {}

    def commit(
        self,
        round: int,
        before: np.ndarray | None,
        after: np.ndarray | None,
        weights: np.ndarray | None = None,
        *,
        algorithm: tuple[Vectors, Vectors] = ({}, {}),
    ) -> None:
        """Keep both outcomes of the update that is about to leave, and the weights that it is against.

        `algorithm`: the state of the algorithm before and after, in the same two versions.
        """
        self._residual, self._weights = Residual(round, before, after), weights
        self._algorithm = Versions(round, *algorithm)
        if self._durable:
            assert self.folder is not None
            file = io.BytesIO()
            parts: dict[str, Any] = {"before": before, "after": after, "weights": weights}
            parts |= {_BEFORE + name: value for name, value in algorithm[0].items()}
            parts |= {_AFTER + name: value for name, value in algorithm[1].items()}
            parts = {name: value for name, value in parts.items() if value is not None}
            np.savez(file, version=np.int64(_VERSION), round=np.int64(round), **parts)
            write_bytes(self.folder / STATE, file.getvalue(), mode=PRIVATE_FILE)

    def note_evidence(self, round: int, evidence: DPEvidence) -> None:
        """What the noise-adding code says that it did, one JSON line a participation. Never leaves the client."""
        if self.folder is not None:
            self._append(EVIDENCE, json.dumps({"round": round, **asdict(evidence)}))

    def log(self, line: str) -> None:
        """For the client's own operator."""
        if self.folder is not None:
            self._append(LOG, line)

    def _load(self) -> None:
        assert self.folder is not None
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a damaged file open
                version = int(file["version"])
                self._residual = Residual(int(file["round"]), file.get("before"), file.get("after"))
                self._weights = file.get("weights")
                self._algorithm = Versions(self._residual.round, _named(file, _BEFORE), _named(file, _AFTER))
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, NotImplementedError) as error:
            raise StateError(
                f"{path}: not a client's state ({error}); move it away to start without what was lost so far"
            ) from None
        if version != _VERSION:
            raise StateError(f"{path}: version {version}, this fedq reads {_VERSION}; move it away, or use that fedq")

    def _append(self, name: str, line: str) -> None:
        assert self.folder is not None
        with append_to_private(self.folder / name) as file:
            file.write(line.rstrip("\n") + "\n")


def _named(file: Any, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
