"""The result of a run: rows of rounds, the final result, the run folder, curves and accounts of spends.

Depends on numbers and files; does not know torch, Flower, Hydra or rich. Importing it does not load matplotlib.
"""

from fedq.results.folder import new_run_folder, read_model, write_model
from fedq.results.forecast import ClientLevelForecast, Forecast
from fedq.results.result import AccuracySource, Result, RunStatus, read_result, save_curves
from fedq.results.rows import RoundLog, RoundRow, RoundStatus, read_rounds

__all__ = [
    "AccuracySource",
    "ClientLevelForecast",
    "Forecast",
    "Result",
    "RoundLog",
    "RoundRow",
    "RoundStatus",
    "RunStatus",
    "new_run_folder",
    "read_model",
    "read_result",
    "read_rounds",
    "save_curves",
    "write_model",
]
