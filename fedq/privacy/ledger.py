"""What one body of data has spent, one row a spend, on disk before anything bought with it may leave.
Knows rows, hashes and SQLite; not models, gradients, budgets or who asks.

One file is the ledger of one client's data, and all its rows compose: a second experiment over the same data
is given the same file. `data`, `run`, `round` and so on are labels, never a reason to leave a row out.

Each row holds the hash of the row before it, the first one a hash of the ledger's own random identity, so a
row that was changed, removed, inserted, moved or copied from elsewhere breaks the chain. The chain has no
key: it shows accidents and careless edits, not a forger who recomputes it. A tail that was cut off, or a file
put back to an older copy, is a shorter whole chain: to see that, keep `head()` outside this file.
Reading always checks, and nothing is appended to a ledger that does not check out.
"""

import datetime
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from fedq.privacy.accounting import Accountant, Mechanism, epsilon
from fedq.privacy.spend import Spend

SCHEMA_VERSION: Final = 1
# Long enough for another process to account and sync its own spend, short enough to say that one hangs.
_LOCK_SECONDS: Final = 60.0


class LedgerError(Exception):
    """The ledger cannot be read, trusted or written. Nothing was spent; a person has to look at it."""


@dataclass(frozen=True)
class Row:
    """A spend as it was written."""

    id: int  # 1, 2, 3, ... without a gap
    schema: int
    time: str  # UTC, ISO 8601
    spend: Spend
    previous: str  # hash of the row before (hex), or of the ledger's identity
    hash: str


_SPEND_NAMES: Final = tuple(field.name for field in fields(Spend))
_TYPES: Final[dict[Any, str]] = {float: "REAL", int: "INTEGER", str: "TEXT"}
_COLUMNS: Final = ", ".join(f"{f.name} {_TYPES[f.type]} NOT NULL" for f in fields(Spend))
_CREATE: Final = f"""
CREATE TABLE identity (id TEXT NOT NULL);
CREATE TABLE spend (id INTEGER PRIMARY KEY, schema INTEGER NOT NULL, time TEXT NOT NULL, {_COLUMNS},
                    previous TEXT NOT NULL, hash TEXT NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""


def check_same_data(path: Path, rows: Sequence["Row"], data: str) -> None:
    """LedgerError if a row is of other data: one ledger is the account of one client's examples."""
    other = {row.spend.data for row in rows} - {data}
    if other:
        raise LedgerError(
            f"{path}: holds spends of {other.pop()!r}, this one is of {data!r}: the same examples may have been dealt "
            "anew, and would be spent twice; give other data, or another deal of it, a ledger of its own"
        )


class Ledger:
    """A ledger file; made if it is not there, unless `access="read"`. Holds no connection between calls.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "ledger.sqlite")
    >>> ledger.epsilon(1e-5)
    0.0
    """

    def __init__(self, path: str | Path, *, access: Literal["append", "read"] = "append") -> None:
        if access not in ("append", "read"):
            raise ValueError(f"access={access!r}: must be append or read")
        self.path = Path(path).absolute()
        self.access = access
        if not self.path.exists():
            if access == "read":
                raise LedgerError(f"{self.path}: no such ledger")
            _create(self.path)
        with self._connect() as connection:
            _check_schema(connection, self.path)

    def spend(self, spend: Spend, *, guard: Callable[[Sequence[Mechanism]], None] | None = None) -> int:
        """Append a row and sync it to disk; returns its number only when it is there.

        `guard` sees what was spent before, under the same lock, and refuses by raising: two processes
        never both fit into what is left of one budget. Any exception means that nothing was written.
        """
        if self.access == "read":
            raise LedgerError(f"{self.path}: opened for reading; open it with access='append' to spend")
        with self._connect() as connection:
            # IMMEDIATE takes the write lock before the read, so no other spend can come between read and
            # append.
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows, identity = _read(connection, self.path)
                check_same_data(self.path, rows, spend.data)
                strangers = {row.spend.noise_source for row in rows} - {spend.noise_source}
                if strangers:
                    raise LedgerError(
                        f"{self.path}: holds spends with {strangers.pop()} noise, this one has "
                        f"{spend.noise_source} noise: give seeded runs a ledger of their own"
                    )
                if guard is not None:
                    guard([row.spend.as_mechanism() for row in rows])
                previous = rows[-1].hash if rows else _genesis(identity)
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
                row_id = len(rows) + 1
                digest = _hash(row_id, SCHEMA_VERSION, now, spend, previous)
                values = (
                    row_id,
                    SCHEMA_VERSION,
                    now,
                    *(getattr(spend, n) for n in _SPEND_NAMES),
                    previous,
                    digest,
                )
                marks = ", ".join("?" * len(values))
                names = f"id, schema, time, {', '.join(_SPEND_NAMES)}, previous, hash"
                connection.execute(f"INSERT INTO spend ({names}) VALUES ({marks})", values)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return row_id

    def rows(self) -> list[Row]:
        """All rows, oldest first; raises LedgerError, naming the row, if anything does not check out."""
        with self._connect() as connection:
            rows, _ = _read(connection, self.path)
        return rows

    def verify(self) -> None:
        """Check the file, every row and the chain; LedgerError says which row is wrong and how."""
        with self._connect() as connection:
            for (message,) in connection.execute("PRAGMA integrity_check"):
                if message != "ok":
                    raise LedgerError(f"{self.path}: the file is damaged: {message}")
            _read(connection, self.path)

    def head(self) -> tuple[int, str]:
        """(number of rows, hash of the last): kept elsewhere, it shows a cut tail or an older copy."""
        with self._connect() as connection:
            rows, identity = _read(connection, self.path)
        return len(rows), rows[-1].hash if rows else _genesis(identity)

    def mechanisms(self) -> list[Mechanism]:
        """Every spend's mechanism, oldest first."""
        return [row.spend.as_mechanism() for row in self.rows()]

    def epsilon(self, delta: float, *, accountant: Accountant = "prv") -> float:
        """Upper bound on what all rows cost together (seeded noise: what they would cost were it secret)."""
        return epsilon(self.mechanisms(), delta, accountant=accountant)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # A connection per call: SQLite's must not cross threads or forks.
        mode = "ro" if self.access == "read" else "rw"
        try:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=_LOCK_SECONDS, isolation_level=None
            )
            try:
                # EXTRA is FULL and also syncs the directory once the rollback journal is gone: with FULL
                # alone a power cut right after the commit may bring the journal, and so the older state,
                # back.
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            raise LedgerError(f"{self.path}: {error}; is it held by another process, or not writable?") from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path}: no whole ledger: {error}") from error


def _create(path: Path) -> None:
    """Make an empty ledger whole in one step: a crash or a second process never leaves half a one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            connection = sqlite3.connect(draft, isolation_level=None)
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(_CREATE)
            connection.execute("INSERT INTO identity VALUES (?)", (os.urandom(16).hex(),))
            connection.close()
            try:
                os.link(draft, path)  # unlike rename, never replaces a ledger that another process just made
            except FileExistsError:
                return
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        finally:
            os.unlink(draft)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{path}: cannot make a ledger here: {error}") from error


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise LedgerError(f"{path}: schema {version}, this fedq reads up to {SCHEMA_VERSION}; update fedq")
    if version < 1:
        raise LedgerError(
            f"{path}: no fedq ledger (empty, cut short, or another program's); move it away to start anew"
        )


def _read(connection: sqlite3.Connection, path: Path) -> tuple[list[Row], str]:
    """All rows and the ledger's identity, every one checked."""
    _check_schema(connection, path)
    identities = connection.execute("SELECT id FROM identity").fetchall()
    if len(identities) != 1:
        raise LedgerError(f"{path}: {len(identities)} identities in place of one")
    (identity,) = identities[0]
    names = f"id, schema, time, {', '.join(_SPEND_NAMES)}, previous, hash"
    rows: list[Row] = []
    previous = _genesis(identity)
    for values in connection.execute(f"SELECT {names} FROM spend ORDER BY id"):
        row_id, schema, time, *spent, chained, digest = values
        expected = len(rows) + 1
        if row_id != expected:
            raise LedgerError(f"{path}: row {expected} is missing (row {row_id} follows row {expected - 1})")
        if schema != SCHEMA_VERSION:
            raise LedgerError(f"{path}: row {row_id} has schema {schema}, this fedq reads {SCHEMA_VERSION}")
        try:
            spend = Spend(**dict(zip(_SPEND_NAMES, spent, strict=True)))
        except ValueError as error:
            raise LedgerError(f"{path}: row {row_id} holds an impossible value: {error}") from error
        if chained != previous:
            raise LedgerError(f"{path}: row {row_id} does not follow the row before it (its `previous` differs)")
        if digest != _hash(row_id, schema, time, spend, chained):
            raise LedgerError(f"{path}: row {row_id} was changed after it was written (its hash differs)")
        rows.append(Row(row_id, schema, time, spend, chained, digest))
        previous = digest
    return rows, identity


def _hash(row_id: int, schema: int, time: str, spend: Spend, previous: str) -> str:
    """SHA-256 of the row as canonical JSON: sorted keys, no spaces, floats as exact hex."""
    content: dict[str, object] = {name: getattr(spend, name) for name in _SPEND_NAMES}
    content = {name: value.hex() if isinstance(value, float) else value for name, value in content.items()}
    content |= {"id": row_id, "schema": schema, "time": time, "previous": previous}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _genesis(identity: str) -> str:
    return hashlib.sha256(f"fedq ledger {identity}".encode()).hexdigest()
