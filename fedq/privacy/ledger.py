"""The privacy ledger of one client's data: one row a spend, on disk before any result of that spend leaves.
Knows SQLite and locks; not models, gradients, budgets or the asking server.

One file is the ledger of one client's data, and all its rows compose: a second experiment over the same data
uses the same file. `data`, `run`, `round` and so on are labels, never a reason to leave a row out.

Rows are chained by hashes (`chain`), and the end of the chain is kept in a second file (`ledger_tip`). Together they
show a row that was changed, removed, inserted or moved, rows cut off at the end, and an older copy put back. Reading
always checks both. Nothing is appended to a ledger that fails these checks until a person decides (`accept`).
"""

import datetime
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from fedq.core.durable import PRIVATE_FILE, make_private_folder
from fedq.privacy.accounting import Accountant, AnyMechanism, epsilon
from fedq.privacy.chain import SCHEMA_VERSION, SPEND_NAMES, BrokenChainError, Row, checked, hashes
from fedq.privacy.ledger_files import file_fault, journal_beside
from fedq.privacy.ledger_tip import LedgerTip, LedgerTipError, check_tip, read_tip, write_tip
from fedq.privacy.spend import Spend

# Long enough for another process to account and sync its own spend, short enough to say that one hangs.
_LOCK_SECONDS: Final = 60.0
TIP_SUFFIX: Final = ".head"  # the first name of the file; ledgers that exist have it


class LedgerError(Exception):
    """The ledger cannot be read, trusted or written. A person has to look at it.

    Nothing was spent, with one exception: where only the tip could not be written, the row stays in the ledger,
    although nothing left the client for it.
    """


_TYPES: Final[dict[Any, str]] = {float: "REAL", int: "INTEGER", str: "TEXT"}
_COLUMNS: Final = ", ".join(f"{f.name} {_TYPES[f.type]} NOT NULL" for f in fields(Spend))
_NAMES: Final = f"id, schema, time, {', '.join(SPEND_NAMES)}, previous, hash"
_CREATE: Final = f"""
CREATE TABLE identity (id TEXT NOT NULL);
CREATE TABLE spend (id INTEGER PRIMARY KEY, schema INTEGER NOT NULL, time TEXT NOT NULL, {_COLUMNS},
                    previous TEXT NOT NULL, hash TEXT NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""


def check_same_data(path: Path, rows: Sequence[Row], data: str) -> None:
    """LedgerError if a row belongs to other data: one ledger is the account of one client's examples."""
    other = {row.spend.data for row in rows} - {data}
    if other:
        raise LedgerError(
            f"{path}: holds spends of {other.pop()!r}, this one is of {data!r}: the same examples may have been "
            "partitioned again, and would be spent twice; give other data, or another partition, a ledger of its own"
        )


def tip_beside(path: Path) -> Path:
    """The default file of a ledger's tip: beside the ledger."""
    return path.with_name(f"{path.name}{TIP_SUFFIX}")


def tip_in(folder: Path, ledger: Path) -> Path:
    """The file of a ledger's tip in a folder for tips; the name depends on the ledger's path alone."""
    place = hashlib.sha256(os.fsencode(ledger.absolute())).hexdigest()[:16]
    return folder / f"ledger-{place}{TIP_SUFFIX}"


def is_begun(path: Path, *, tip: Path | None = None) -> bool:
    """Whether there is a ledger, or a tip of one: a tip without its ledger means that the ledger was deleted."""
    return path.exists() or (tip or tip_beside(path)).exists()


class Ledger:
    """A ledger file, created if it does not exist, unless `access="read"`. Holds no connection between calls.

    `tip`: the file of the ledger's tip; by default beside the ledger (`NAME.head`). Raises LedgerError.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "ledger.sqlite")
    >>> ledger.epsilon(1e-5)
    0.0
    """

    def __init__(
        self, path: str | Path, *, access: Literal["append", "read"] = "append", tip: str | Path | None = None
    ) -> None:
        if access not in ("append", "read"):
            raise ValueError(f"access={access!r}: must be append or read")
        self.path = Path(path).absolute()
        self.tip_path = tip_beside(self.path) if tip is None else Path(tip).absolute()
        self.access = access
        if not self.path.exists():
            if self.tip_path.exists():
                raise LedgerError(
                    f"{self.path}: no such ledger, though {self.tip_path} tells of one: put the ledger back, or, "
                    "if this data has spent nothing, move that file away too"
                )
            if access == "read":
                raise LedgerError(f"{self.path}: no such ledger")
            _create(self.path)
        with self._connect() as connection:
            _check_schema(connection, self.path)

    def spend(self, spend: Spend, *, guard: Callable[[Sequence[Row]], None] | None = None) -> int:
        """Append a row, sync it and the tip to disk, and return the row's number once both are there.

        `guard` is called with the earlier rows, under the same lock, and refuses by raising an exception: so two
        processes cannot both use the rest of one budget. Any exception means that nothing was written, except a
        LedgerError about the tip: then the row stays, and nothing may leave for it. The row's `attempt` counts the
        earlier spends of the same run and round: a message that is delivered twice is spent twice.
        """
        if self.access == "read":
            raise LedgerError(f"{self.path}: opened for reading; open it with access='append' to spend")
        with self._locked(), self._connect() as connection:
            # IMMEDIATE takes the write lock before the read, so no other program can come between read and append.
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows, identity, tip = self._rows_and_tip(connection)
                check_same_data(self.path, rows, spend.data)
                others = {row.spend.noise_source for row in rows} - {spend.noise_source}
                if others:
                    raise LedgerError(
                        f"{self.path}: holds spends with {others.pop()} noise, this one has "
                        f"{spend.noise_source} noise: give seeded runs a ledger of their own"
                    )
                if guard is not None:
                    guard(rows)
                if (
                    not self.tip_path.exists()
                ):  # written before the first row, so that rows without a tip mean a deleted tip
                    self._write_tip(tip)
                again = sum((r.spend.run, r.spend.round, r.spend.unit) == _occasion(spend) for r in rows)
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
                row = Row.after(rows, identity, time=now, spend=replace(spend, attempt=spend.attempt + again))
                spent = (getattr(row.spend, name) for name in SPEND_NAMES)
                values = (row.id, row.schema, row.time, *spent, row.previous, row.hash)
                marks = ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO spend ({_NAMES}) VALUES ({marks})", values)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._write_tip(replace(tip, rows=row.id, hash=row.hash))
        return row.id

    def rows(self) -> list[Row]:
        """All rows, oldest first; raises LedgerError, which names the row, if a check fails."""
        with self._connect() as connection:
            return self._rows_and_tip(connection)[0]

    def verify(self) -> None:
        """Check the file, every row, the chain and its tip; raises LedgerError, which names the row and its fault."""
        with self._connect() as connection:
            for (message,) in connection.execute("PRAGMA integrity_check"):
                if message != "ok":
                    raise LedgerError(f"{self.path}: the file is damaged: {message}")
        self.rows()

    def tip(self) -> LedgerTip:
        """The tip of the chain as it is now, with the decisions of a person about it."""
        with self._connect() as connection:
            rows, identity, kept = self._rows_and_tip(connection)
        return replace(kept, rows=len(rows), hash=hashes(rows, identity)[-1])

    def accept(self, reason: str) -> LedgerTip:
        """Record a person's decision that the chain is the account as it stands, although its tip differs.

        For a backup that was put back, or a tip that was lost. The rows themselves must pass all checks: a changed row
        cannot be accepted. The decision, its time and the reason stay in the tip. Raises LedgerError.
        """
        if not reason.strip():
            raise ValueError("reason='': say why this chain is the account, e.g. 'restored from the backup of Monday'")
        with self._locked(), self._connect() as connection:
            rows, identity = self._read(connection)
            try:
                before = read_tip(self.tip_path)
            except LedgerTipError:
                before = None
            tip = (before or LedgerTip(0, "")).accepting(reason, hashes(rows, identity))
            self._write_tip(tip)
        return tip

    def mechanisms(self) -> list[AnyMechanism]:
        """The mechanism of every spend, oldest first."""
        return [row.spend.as_mechanism() for row in self.rows()]

    def epsilon(self, delta: float, *, accountant: Accountant = "prv") -> float:
        """Upper bound on the epsilon of all rows together at `delta` (seeded noise counts as if it were secret)."""
        return epsilon(self.mechanisms(), delta, accountant=accountant)

    def _read(self, connection: sqlite3.Connection) -> tuple[list[Row], str]:
        """All rows, each checked, and the ledger's identity."""
        _check_schema(connection, self.path)
        identities = connection.execute("SELECT id FROM identity").fetchall()
        if len(identities) != 1:
            raise LedgerError(f"{self.path}: has {len(identities)} identities instead of one")
        (identity,) = identities[0]
        try:
            rows = checked(connection.execute(f"SELECT {_NAMES} FROM spend ORDER BY id"), identity)
        except BrokenChainError as error:
            raise LedgerError(f"{self.path}: {error}") from error
        # No hash covers the schema number of the file. With a lower number, nobody would miss the tip of newer rows.
        newest, stated = max((row.schema for row in rows), default=0), _user_version(connection)
        if newest > stated:
            raise LedgerError(
                f"{self.path}: the file says schema {stated}, and holds a row of schema {newest}: it was changed "
                "after it was written; put the right file back"
            )
        return rows, identity

    def _rows_and_tip(self, connection: sqlite3.Connection) -> tuple[list[Row], str, LedgerTip]:
        """Rows, identity and tip, all checked; LedgerError unless the chain goes through the tip."""
        fix = f"put the right file back, or, if you know why: fedq privacy ledger {self.path} --accept REASON"
        try:
            tip = read_tip(self.tip_path)  # before the rows: another process may append and move it meanwhile
            rows, identity = self._read(connection)
            chain = hashes(rows, identity)
            if tip is None:
                if rows and _user_version(connection) > 1:  # schema 1 has no tip; `_read` has compared the rows' schema
                    raise LedgerTipError(f"it has {len(rows)} rows and its tip {self.tip_path} is gone")
                tip = LedgerTip(len(rows), chain[-1])
            check_tip(self.tip_path, tip, chain)
        except LedgerTipError as error:
            raise LedgerError(f"{self.path}: {error}; {fix}") from error
        return rows, identity, tip

    def _write_tip(self, tip: LedgerTip) -> None:
        try:
            write_tip(self.tip_path, tip)
        except OSError as error:
            raise LedgerError(f"{self.tip_path}: the ledger's tip cannot be written: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the row and the tip: of two processes, the slower must not replace the newer tip by its older one."""
        lock = FileLock(f"{self.path}.lock", timeout=_LOCK_SECONDS, mode=PRIVATE_FILE)
        try:
            lock.acquire()
        except Timeout as error:
            raise LedgerError(f"{self.path}: another process has held it for {_LOCK_SECONDS:.0f} s") from error
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be locked, so nothing was written: {error}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # A connection per call: SQLite's must not cross threads or forks.
        # A crash inside a commit leaves a journal; only a connection that may write can roll it back.
        if (why := file_fault(self.path, self.tip_path)) is not None:
            raise LedgerError(why)
        torn = journal_beside(self.path).exists()
        mode = "ro" if self.access == "read" and not torn else "rw"
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
            raise LedgerError(f"{self.path}: not a complete ledger: {error}") from error


def _occasion(spend: Spend) -> tuple[str, int, str]:
    return spend.run, spend.round, spend.unit


def _create(path: Path) -> None:
    """Create an empty ledger in one atomic step: neither a crash nor a second process leaves half a file."""
    try:
        make_private_folder(path.parent)
        # Readable by its owner alone. SQLite gives each journal the mode of its database.
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


def _user_version(connection: sqlite3.Connection) -> int:
    """The newest schema in the file, as the file itself states."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = _user_version(connection)
    if version > SCHEMA_VERSION:
        raise LedgerError(f"{path}: schema {version}, this fedq reads up to {SCHEMA_VERSION}; update fedq")
    if version < 1:
        raise LedgerError(
            f"{path}: no fedq ledger (empty, cut short, or of another program); move it away to start a new one"
        )
