"""Ledgers as a person reads them, where there are many runs in one."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from fedq.console.accounts import ledger_table
from fedq.privacy import MOST_EXACT
from fedq.privacy.chain import Row
from fedq.results.accounts import SHOWN, ledger_json
from tests.privacy.ledgers import SPEND


def chain(runs: int) -> list[Row]:
    """One row a run, each with a noise of its own."""
    rows: list[Row] = []
    for number in range(runs):
        spend = replace(SPEND, run=f"run-{number:03d}", noise_multiplier=10.0 + number)
        rows.append(Row.after(rows, "identity", time="2026-01-01T00:00:00", spend=spend))
    return rows


def text(rows: list[Row]) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(ledger_table("ledger.sqlite", rows, [], every=False))
    return " ".join(console.export_text().split())


@pytest.mark.integration
@pytest.mark.parametrize(("runs", "coarse"), [(MOST_EXACT, False), (MOST_EXACT + 1, True)])
def test_where_epsilon_is_the_coarser_bound_the_ledger_says_so(runs, coarse):
    rows = chain(runs)
    assert ("Renyi accounting" in text(rows)) == coarse
    assert ledger_json(rows, [])["coarse"] is coarse


@pytest.mark.integration
def test_of_many_runs_the_newest_are_listed_and_the_older_counted():
    shown = text(chain(SHOWN + 3))
    assert f"the last {SHOWN} of {SHOWN + 3} runs" in shown
    assert "run-002" not in shown
    assert "run-003" in shown
