"""The party on whose machine an experiment is built in a deployment: the server, or one data owner."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Site:
    """One party of a deployment.

    `identity`: the client's name; None for the server. `data`: path of the client's own examples. `budget`: the largest
    epsilon that the owner allows its data to spend, over all runs, at `delta` or less.

    A client without `data` takes its part of data that every machine has, such as in a rehearsal on public data.
    """

    identity: str | None
    data: Path | None = None
    budget: float | None = None
    delta: float | None = None

    @property
    def data_name(self) -> str:
        """The name of the examples in the client's ledger: from their path alone, whatever the server asks."""
        return f"own#{hashlib.sha256(str(self.data and self.data.resolve()).encode()).hexdigest()[:16]}"


SERVER = Site(None)
