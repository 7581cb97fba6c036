"""What a client keeps of its last round: two versions, until the server says which one counts."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Versions(Generic[Kept]):
    """The state before and after the update of a round, which the server may accept or drop."""

    round: int = -1
    before: Kept | None = None  # if the update of `round` was dropped
    after: Kept | None = None  # if it was accepted

    def counted(self, accepted: int) -> Kept | None:
        """The version to go on from, given the last round in which the server accepted an update of this client."""
        if accepted > self.round:  # of a state that was restored: what was kept since is not known, and counted already
            return None
        return self.after if accepted == self.round else self.before


class Residual(Versions[np.ndarray]):
    """What compression lost, for error feedback (arXiv:1901.09847).

    The residual after an update holds only what compression lost of it, so it must not be used where that update was
    dropped: both are kept.
    """
