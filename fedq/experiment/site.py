"""On whose machine an experiment is built: everybody's in a simulation, one party's in a deployment."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Site:
    """`identity`: the client whose machine it is, None for the server. `data`: where its own examples lie.

    `budget`: the largest epsilon that the owner lets its data spend, over all runs, at `delta` or less.

    A client without `data` takes its part of data that everybody has, as a rehearsal on public data does.
    """

    identity: str | None
    data: Path | None = None
    budget: float | None = None
    delta: float | None = None

    @property
    def data_name(self) -> str:
        """Names the examples in the client's ledger by where they lie: whatever the server asks, they are the same."""
        return f"own#{hashlib.sha256(str(self.data and self.data.resolve()).encode()).hexdigest()[:16]}"


SERVER = Site(None)
