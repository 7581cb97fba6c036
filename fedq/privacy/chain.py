"""The hash chain of a ledger's rows: each row holds the hash of the row before it. Checks the rows' values.
Knows rows and hashes; not files, locks or budgets.

The chain has no key: it shows accidents and careless edits, not a forger who recomputes all hashes.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from fedq.privacy.spend import Spend

SCHEMA_VERSION: Final = 2  # 1: without a tip, and Gaussian mechanisms alone
SPEND_NAMES: Final = tuple(field.name for field in fields(Spend))
_SCHEMAS: Final = range(1, SCHEMA_VERSION + 1)
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class BrokenChainError(Exception):
    """A row is missing, changed or moved, or holds an impossible value. The text names the row."""


@dataclass(frozen=True)
class Row:
    """One row of a ledger: a spend, and its place in the chain."""

    id: int  # 1, 2, 3, ... without a gap
    schema: int
    time: str  # UTC, ISO 8601
    spend: Spend
    previous: str  # hex hash of the row before; for the first row the genesis hash
    hash: str

    @classmethod
    def after(cls, rows: Sequence["Row"], identity: str, *, time: str, spend: Spend) -> "Row":
        """The next row of a chain."""
        previous = rows[-1].hash if rows else genesis(identity)
        number = len(rows) + 1
        digest = _hash(number, SCHEMA_VERSION, time, spend, previous)
        return cls(number, SCHEMA_VERSION, time, spend, previous, digest)


def genesis(identity: str) -> str:
    """The hash that stands for the row before the first one."""
    return hashlib.sha256(f"fedq ledger {identity}".encode()).hexdigest()


def hashes(rows: Sequence[Row], identity: str) -> list[str]:
    """The hashes of the chain: genesis, row 1, row 2, ..."""
    return [genesis(identity), *(row.hash for row in rows)]


def checked(found: Iterable[Sequence[Any]], identity: str) -> list[Row]:
    """Rows from tuples (id, schema, time, values of the spend, previous, hash), in order of id.

    Raises BrokenChainError for the first row that fails a check.
    """
    rows: list[Row] = []
    previous = genesis(identity)
    for expected, values in enumerate(found, start=1):
        row_id, schema, time, *spent, chained, digest = values
        if row_id != expected:
            raise BrokenChainError(f"row {expected} is missing (row {row_id} follows row {expected - 1})")
        if schema not in _SCHEMAS:
            raise BrokenChainError(f"row {row_id} has schema {schema}, this fedq reads up to {SCHEMA_VERSION}")
        if type(time) is not str:
            raise BrokenChainError(f"row {row_id} holds an impossible value: time={time!r}: must be a text")
        try:
            spend = Spend(*spent)
        except ValueError as error:
            raise BrokenChainError(f"row {row_id} holds an impossible value: {error}") from error
        if chained != previous:
            raise BrokenChainError(f"row {row_id} does not follow the row before it (its `previous` differs)")
        if digest != _hash(row_id, schema, time, spend, chained):
            raise BrokenChainError(
                f"row {row_id} was changed after it was written (its hash differs). Put the right file back, from a "
                "backup with its tip; a changed row can never be accepted"
            )
        rows.append(Row(row_id, schema, time, spend, chained, digest))
        previous = digest
    return rows


def _hash(row_id: int, schema: int, time: str, spend: Spend, previous: str) -> str:
    """SHA-256 of the row as canonical JSON: sorted keys, no spaces, floats as exact hex."""
    content: dict[str, object] = {"id": row_id, "schema": schema, "time": time, "previous": previous}
    for name in SPEND_NAMES:
        value = getattr(spend, name)
        content[name] = value.hex() if type(value) is float else value
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()
