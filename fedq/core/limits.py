"""Limits of a DP guarantee: which epsilon and delta a config may ask for, and a run may call private."""

from typing import Final

# Limits of any budget. Below, the accountants take minutes to calibrate; above, epsilon bounds nothing.
LEAST_EPSILON: Final = 0.05
MOST_EPSILON: Final = 1e4
LEAST_DELTA: Final = 1e-15
# A mechanism that publishes one random example of n is (0, 1/n)-DP: delta must be far below 1 / n, and small anyway.
MOST_DELTA: Final = 1e-3
DELTA_MARGIN: Final = 10  # delta is at most 1 / (10 n)
