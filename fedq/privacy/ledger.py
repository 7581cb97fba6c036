"""What one body of data has spent, one row a spend, on disk before anything bought with it may leave.
Knows SQLite and locks; not models, gradients, budgets or who asks.

One file is the ledger of one client's data, and all its rows compose: a second experiment over the same data
is given the same file. `data`, `run`, `round` and so on are labels, never a reason to leave a row out.

Rows are chained by hashes (`chain`), and the end of the chain is kept in a second file (`head`), so that a row changed,
removed, inserted or moved, a tail cut off and an older copy put back all show. Reading always checks both, and nothing
is appended to a ledger that does not check out until a person decides (`accept`).
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
from fedq.privacy.head import Head, HeadError, check_head, read_head, write_head
from fedq.privacy.ledger_files import journal_beside, odd_file
from fedq.privacy.spend import Spend

# Long enough for another process to account and sync its own spend, short enough to say that one hangs.
_LOCK_SECONDS: Final = 60.0
HEAD_SUFFIX: Final = ".head"


class LedgerError(Exception):
    """The ledger cannot be read, trusted or written. A person has to look at it.

    Nothing was spent, but where the head alone could not be written: then the row stands, and nothing left on it.
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
    """LedgerError if a row is of other data: one ledger is the account of one client's examples."""
    other = {row.spend.data for row in rows} - {data}
    if other:
        raise LedgerError(
            f"{path}: holds spends of {other.pop()!r}, this one is of {data!r}: the same examples may have been dealt "
            "anew, and would be spent twice; give other data, or another deal of it, a ledger of its own"
        )


def head_beside(path: Path) -> Path:
    """Where a ledger's head lies if nobody named another place."""
    return path.with_name(f"{path.name}{HEAD_SUFFIX}")


def head_in(folder: Path, ledger: Path) -> Path:
    """Where a ledger's head lies in a folder for heads: under a name of that ledger's alone, also once it is gone."""
    place = hashlib.sha256(os.fsencode(ledger.absolute())).hexdigest()[:16]
    return folder / f"ledger-{place}{HEAD_SUFFIX}"


def is_begun(path: Path, *, head: Path | None = None) -> bool:
    """Whether there is a ledger, or a head that tells of one: then a missing ledger was deleted, and is no new one."""
    return path.exists() or (head or head_beside(path)).exists()


class Ledger:
    """A ledger file; made if it is not there, unless `access="read"`. Holds no connection between calls.

    `head`: the file that keeps the end of the chain; beside the ledger (`NAME.head`) if not given.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "ledger.sqlite")
    >>> ledger.epsilon(1e-5)
    0.0
    """

    def __init__(
        self, path: str | Path, *, access: Literal["append", "read"] = "append", head: str | Path | None = None
    ) -> None:
        if access not in ("append", "read"):
            raise ValueError(f"access={access!r}: must be append or read")
        self.path = Path(path).absolute()
        self.head_path = head_beside(self.path) if head is None else Path(head).absolute()
        self.access = access
        if not self.path.exists():
            if self.head_path.exists():
                raise LedgerError(
                    f"{self.path}: no such ledger, though {self.head_path} tells of one: put it back, or move that "
                    "file away too if this data has spent nothing"
                )
            if access == "read":
                raise LedgerError(f"{self.path}: no such ledger")
            _create(self.path)
        with self._connect() as connection:
            _check_schema(connection, self.path)

    def spend(self, spend: Spend, *, guard: Callable[[Sequence[Row]], None] | None = None) -> int:
        """Append a row and sync it and the head to disk; returns its number only when both are there.

        `guard` sees the rows before, under the same lock, and refuses by raising: two processes
        never both fit into what is left of one budget. Any exception means that nothing was written, but one while
        the head is written: then the spend stands, and nothing may leave on it. `attempt` of the row counts the spends
        of the same run and round before it: a message that is delivered again is a spend again.
        """
        if self.access == "read":
            raise LedgerError(f"{self.path}: opened for reading; open it with access='append' to spend")
        with self._locked(), self._connect() as connection:
            # IMMEDIATE takes the write lock before the read, so no other program can come between read and append.
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows, identity, head = self._whole(connection)
                check_same_data(self.path, rows, spend.data)
                others = {row.spend.noise_source for row in rows} - {spend.noise_source}
                if others:
                    raise LedgerError(
                        f"{self.path}: holds spends with {others.pop()} noise, this one has "
                        f"{spend.noise_source} noise: give seeded runs a ledger of their own"
                    )
                if guard is not None:
                    guard(rows)
                if not self.head_path.exists():  # before the first row: a row without a head is one that was deleted
                    self._keep(head)
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
            self._keep(replace(head, rows=row.id, hash=row.hash))
        return row.id

    def rows(self) -> list[Row]:
        """All rows, oldest first; raises LedgerError, naming the row, if anything does not check out."""
        with self._connect() as connection:
            return self._whole(connection)[0]

    def verify(self) -> None:
        """Check the file, every row, the chain and its head; LedgerError says which row is wrong and how."""
        with self._connect() as connection:
            for (message,) in connection.execute("PRAGMA integrity_check"):
                if message != "ok":
                    raise LedgerError(f"{self.path}: the file is damaged: {message}")
        self.rows()

    def head(self) -> Head:
        """The end of the chain as it is now, with what a person has decided about it."""
        with self._connect() as connection:
            rows, identity, kept = self._whole(connection)
        return replace(kept, rows=len(rows), hash=hashes(rows, identity)[-1])

    def accept(self, reason: str) -> Head:
        """A person's word that the chain as it stands is the account, though its head tells of another.

        For a backup that was put back, or a head that was lost. The rows themselves must check out: a changed row
        cannot be accepted. What was decided, when and why stays in the head.
        """
        if not reason.strip():
            raise ValueError("reason='': say why this chain is the account, e.g. 'restored from the backup of Monday'")
        with self._locked(), self._connect() as connection:
            rows, identity = self._read(connection)
            try:
                before = read_head(self.head_path)
            except HeadError:
                before = None
            head = (before or Head(0, "")).decided(reason, hashes(rows, identity))
            self._keep(head)
        return head

    def mechanisms(self) -> list[AnyMechanism]:
        """Every spend's mechanism, oldest first."""
        return [row.spend.as_mechanism() for row in self.rows()]

    def epsilon(self, delta: float, *, accountant: Accountant = "prv") -> float:
        """Upper bound on what all rows cost together (seeded noise: what they would cost were it secret)."""
        return epsilon(self.mechanisms(), delta, accountant=accountant)

    def _read(self, connection: sqlite3.Connection) -> tuple[list[Row], str]:
        """All rows and the ledger's identity, every one checked."""
        _check_schema(connection, self.path)
        identities = connection.execute("SELECT id FROM identity").fetchall()
        if len(identities) != 1:
            raise LedgerError(f"{self.path}: {len(identities)} identities in place of one")
        (identity,) = identities[0]
        try:
            rows = checked(connection.execute(f"SELECT {_NAMES} FROM spend ORDER BY id"), identity)
        except BrokenChainError as error:
            raise LedgerError(f"{self.path}: {error}") from error
        # No hash covers the file's own word; with a lower one the head that newer rows have would not be missed.
        newest, said = max((row.schema for row in rows), default=0), _user_version(connection)
        if newest > said:
            raise LedgerError(
                f"{self.path}: the file says schema {said}, and holds a row of schema {newest}: it was changed "
                "after it was written; put the right file back"
            )
        return rows, identity

    def _whole(self, connection: sqlite3.Connection) -> tuple[list[Row], str, Head]:
        """Rows, identity and the head that their chain reaches and goes through."""
        fix = f"put the right file back, or, if you know why: fedq privacy ledger {self.path} --accept REASON"
        try:
            head = read_head(self.head_path)  # before the rows: another process may append and move it meanwhile
            rows, identity = self._read(connection)
            chain = hashes(rows, identity)
            if head is None:
                if rows and _user_version(connection) > 1:  # schema 1 had none; `_read` compared the rows'
                    raise HeadError(f"it has {len(rows)} rows and its head {self.head_path} is gone")
                head = Head(len(rows), chain[-1])
            check_head(self.head_path, head, chain)
        except HeadError as error:
            raise LedgerError(f"{self.path}: {error}; {fix}") from error
        return rows, identity, head

    def _keep(self, head: Head) -> None:
        try:
            write_head(self.head_path, head)
        except OSError as error:
            raise LedgerError(f"{self.head_path}: the ledger's head cannot be written: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Over the row and the head: of two processes, the slower must not put its older head over the newer."""
        lock = FileLock(f"{self.path}.lock", timeout=_LOCK_SECONDS, mode=PRIVATE_FILE)
        try:
            lock.acquire()
        except Timeout as error:
            raise LedgerError(f"{self.path}: another process has held it for {_LOCK_SECONDS:.0f} s") from error
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be locked, and so not written: {error}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # A connection per call: SQLite's must not cross threads or forks.
        # A journal is what a crash inside a commit leaves; only who may write can undo the half that is there.
        if (why := odd_file(self.path, self.head_path)) is not None:
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
            raise LedgerError(f"{self.path}: no whole ledger: {error}") from error


def _occasion(spend: Spend) -> tuple[str, int, str]:
    return spend.run, spend.round, spend.unit


def _create(path: Path) -> None:
    """Make an empty ledger whole in one step: a crash or a second process never leaves half a one."""
    try:
        make_private_folder(path.parent)
        # For its owner alone, and so is each journal, to which SQLite gives the mode of its database.
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
    """Of the newest schema that the file holds, as the file itself says."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = _user_version(connection)
    if version > SCHEMA_VERSION:
        raise LedgerError(f"{path}: schema {version}, this fedq reads up to {SCHEMA_VERSION}; update fedq")
    if version < 1:
        raise LedgerError(
            f"{path}: no fedq ledger (empty, cut short, or another program's); move it away to start anew"
        )
