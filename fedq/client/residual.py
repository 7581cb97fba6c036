"""What a client keeps of its last round: two versions, until the server says which one counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Residual:
    """Error feedback (arXiv:1901.09847) in two versions.

    The server may drop an update that was sent. The residual after that update holds only what compression
    lost of it, so it must not be used then: both residuals are kept until the server says which one counts.
    """

    round: int = -1
    before: np.ndarray | None = None  # if the update of `round` was dropped
    after: np.ndarray | None = None  # if it was accepted

    def counted(self, accepted: int) -> np.ndarray | None:
        """What was lost so far, given the last round in which the server accepted an update of this client."""
        if accepted > self.round:  # of a state that was restored: what was lost since is not known, and counted already
            return None
        return self.after if accepted == self.round else self.before


@dataclass(frozen=True)
class AlgorithmState:
    """The named vectors of a federated algorithm, such as a control variate, in the same two versions."""

    round: int = -1
    before: Mapping[str, np.ndarray] = field(default_factory=dict)
    after: Mapping[str, np.ndarray] = field(default_factory=dict)

    def counted(self, accepted: int) -> Mapping[str, np.ndarray]:
        """The state to go on from; empty where it is not known, or at the start."""
        if accepted > self.round:
            return {}
        return self.after if accepted == self.round else self.before
