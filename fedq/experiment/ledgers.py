"""Where clients keep their files and ledgers, the names of their data, and checks of the ledgers' folder."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from fedq.config import Config, Problem
from fedq.data import Dataset
from fedq.experiment.binding import error_text
from fedq.experiment.site import Site

LEDGER = "ledger.sqlite"
SERVER_LEDGER = "server.sqlite"  # in privacy.ledger, beside the folders of the clients: a client may be named `server`


@dataclass(frozen=True)
class Account:
    """The files in which a client's spends are recorded, and the code that they are recorded for."""

    ledger: Path
    tip: Path | None = None  # file of the ledger's tip; None: beside the ledger
    bundle: str = ""  # digest of the app's own files


def client_folder(run: Path, identity: str) -> Path:
    """The folder of a simulated client's evidence, log and, unless privacy.ledger is set, ledger."""
    return run / "clients" / identity


def ledger_file(config: Config, folder: Path, identity: str) -> Path:
    """The ledger of a simulated client; `folder` holds its other files."""
    return (Path(config.privacy.ledger) / identity if config.privacy.ledger else folder) / LEDGER


def server_ledger_file(config: Config, home: Path) -> Path:
    """The server's ledger of client-level DP; `home` is the folder of its other files."""
    return Path(config.privacy.ledger) / SERVER_LEDGER if config.privacy.ledger else home / LEDGER


def data_name(config: Config, dataset: Dataset, shards: Mapping[str, np.ndarray]) -> str:
    """A name of the exact examples of every shard: the data and the partition. A ledger refuses spends of other names.

    Without shards (a server has none), and with privacy off, the name depends on the config alone.
    """
    partition: dict[str, object] = {
        "data": config.data,
        "partition": asdict(config.partition),
        "clients": config.clients,
        "seed": config.seed,
    }
    if config.names:  # they say which client has which part
        partition["names"] = list(config.names)
    if shards and config.privacy.unit != "off":
        partition["examples"] = _digest(dataset, shards)
    text = json.dumps(partition, sort_keys=True, default=str)
    return f"{dataset.name}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def ledger_name(config: Config, owner: Site) -> str:
    """A name of the examples of a client on its owner's machine, known before the data are opened.

    It is made from the data's path; for a part of data that every machine has, from the config.
    """
    if owner.data is not None:
        return owner.data_name
    partition = [config.data, asdict(config.partition), config.clients, config.seed, config.names]
    return f"part#{hashlib.sha256(json.dumps(partition, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def _digest(dataset: Dataset, shards: Mapping[str, np.ndarray]) -> str:
    """Digest of the arrays and of each client's rows: a file may change, and a loader may return another order."""
    digest = xxhash.xxh3_128()
    for name, array in [("", dataset.train.inputs), ("", dataset.train.targets), *shards.items()]:
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_ledgers(config: Config, data: str | None, found: list[Problem]) -> None:
    """Add a problem if the folder cannot be written, or holds ledgers of other data. Leaves no new files."""
    if config.privacy.unit == "off" or config.privacy.ledger is None:
        return
    folder = Path(config.privacy.ledger)
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        rule = f"ledgers cannot be written there: {error_text(error)}"
        fix = "Name a folder that can be written, or privacy.ledger=null"
        found.append(Problem("privacy.ledger", folder, rule, fix))
    for missing in made:
        if missing.exists():
            missing.rmdir()
    if data is not None and not made:
        _check_same_partition(folder, data, found)


def _check_same_partition(folder: Path, data: str, found: list[Problem]) -> None:
    """In a new partition an example may belong to another client, whose ledger lacks the example's earlier spends."""
    from fedq.privacy import Ledger, LedgerError

    for path in sorted([*folder.glob(f"*/{LEDGER}"), *folder.glob(SERVER_LEDGER)]):
        try:
            others = {row.spend.data for row in Ledger(path, access="read").rows()} - {data}
        except LedgerError:
            continue  # its client refuses to train, and reports it
        if others:
            rule = (
                f"holds ledgers of {others.pop()}, this run is on {data}: "
                "a new partition would spend the same examples twice"
            )
            fix = "Use the same data, partition, clients and seed as those runs, or another folder"
            found.append(Problem("privacy.ledger", folder, rule, fix))
            return
