"""What compression lost of one client's update, while the server's verdict is out. Knows vectors only."""

from dataclasses import dataclass

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
