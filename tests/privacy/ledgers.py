"""A spend, three of them in a ledger, and what somebody with a SQLite shell does to it."""

import dataclasses
import sqlite3

from fedq.privacy import Ledger, Spend

SPEND = Spend(
    noise_multiplier=4.0,
    clip_norm=0.5,
    sample_rate=0.25,
    steps=5,
    delta=1e-5,
    nominal_examples=144,
    noise_source="os",
    data="digits, client 3",
    run="demo-1",
    round=1,
)


def spend_three(ledger: Ledger) -> None:
    for round in (1, 2, 3):
        ledger.spend(dataclasses.replace(SPEND, round=round))


def edit(ledger: Ledger, statement: str, *values: object) -> None:
    """What somebody with a SQLite shell can do."""
    with sqlite3.connect(ledger.path) as connection:
        connection.execute(statement, values)
    connection.close()
