"""Output for the terminal: live display, final report, tables. Knows results; computes nothing. Loads rich lazily."""

from fedq.console.costs import known_costs
from fedq.console.display import Display
from fedq.console.forecast import forecast_table
from fedq.console.report import PartCost, final_table
from fedq.console.sweep import sweep_table
from fedq.console.tables import markdown_table, read_table, replace_table

__all__ = [
    "Display",
    "PartCost",
    "final_table",
    "forecast_table",
    "known_costs",
    "markdown_table",
    "read_table",
    "replace_table",
    "sweep_table",
]
