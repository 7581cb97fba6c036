"""A moving average of the models of a run's rounds: what is evaluated and delivered. Knows vectors; not rounds' order.

Under DP it is post-processing of models that the server holds anyway, and costs no epsilon (De et al. 2022).
"""

import numpy as np

from fedq.codec import MaskedLayout


class MovingAverage:
    """Exponential average with `decay` for what went before; a plain mean until that is as long as its memory.

    So the average never hangs on to the model from before the first round, which an average from there on would.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: np.ndarray | None = None
        self._count = 0

    def after(self, master: np.ndarray, kept: MaskedLayout) -> np.ndarray:
        """The average with the model of one more round, float32 of the same shape; 0.0 where it is pruned."""
        weight = min(self.decay, self._count / (self._count + 1))
        before = master if self._average is None else self._average
        self._average = (weight * before.astype(np.float64) + (1 - weight) * master).astype(np.float32)
        self._count += 1
        return kept.scatter(kept.gather(self._average))
