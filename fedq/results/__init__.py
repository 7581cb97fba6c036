"""What a run shows and leaves behind: display, report, rows, result, curves, folder and tables.

Knows numbers and files; not torch, Flower or Hydra. Importing it loads neither rich nor matplotlib.
"""

from fedq.results.costs import known_costs
from fedq.results.display import Display
from fedq.results.folder import new_run_folder, read_model, write_model
from fedq.results.forecast import ClientLevelForecast, Forecast, forecast_table
from fedq.results.report import PartCost, final_table
from fedq.results.result import AccuracySource, Result, RunStatus, read_result, save_curves
from fedq.results.rows import RoundLog, RoundRow, RoundStatus, read_rounds
from fedq.results.sweep import sweep_table
from fedq.results.tables import markdown_table, read_table, replace_table

__all__ = [
    "AccuracySource",
    "ClientLevelForecast",
    "Display",
    "Forecast",
    "PartCost",
    "Result",
    "RoundLog",
    "RoundRow",
    "RoundStatus",
    "RunStatus",
    "final_table",
    "forecast_table",
    "known_costs",
    "markdown_table",
    "new_run_folder",
    "read_model",
    "read_result",
    "read_rounds",
    "read_table",
    "replace_table",
    "save_curves",
    "sweep_table",
    "write_model",
]
