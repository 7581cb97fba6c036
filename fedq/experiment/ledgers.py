"""Where clients keep their files and ledgers: whose they are, whether they can be written."""

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
from fedq.experiment.binding import told
from fedq.experiment.site import Site

LEDGER = "ledger.sqlite"
SERVER_LEDGER = "server.sqlite"  # in privacy.ledger, beside the folders of the clients: a client may be named `server`


@dataclass(frozen=True)
class Account:
    """Where what a client spends is written down, and for whose code."""

    ledger: Path
    head: Path | None = None  # the end of its chain; None: beside it
    bundle: str = ""  # digest of the app's own files


def client_folder(run: Path, identity: str) -> Path:
    """Where a simulated client keeps its evidence, its log and, unless privacy.ledger says otherwise, its ledger."""
    return run / "clients" / identity


def ledger_file(config: Config, folder: Path, identity: str) -> Path:
    """The ledger of a simulated client whose other files lie in `folder`."""
    return (Path(config.privacy.ledger) / identity if config.privacy.ledger else folder) / LEDGER


def server_ledger_file(config: Config, home: Path) -> Path:
    """The ledger of client-level DP, of a server whose own files lie in `home`."""
    return Path(config.privacy.ledger) / SERVER_LEDGER if config.privacy.ledger else home / LEDGER


def data_name(config: Config, dataset: Dataset, shards: Mapping[str, np.ndarray]) -> str:
    """Names the very examples of every shard: the data, and how they were dealt. A ledger takes no other's spends.

    Without shards (a server, which holds none), and with privacy off, it is the config's word alone.
    """
    deal: dict[str, object] = {
        "data": config.data,
        "partition": asdict(config.partition),
        "clients": config.clients,
        "seed": config.seed,
    }
    if config.names:  # they say whose which part is
        deal["names"] = list(config.names)
    if shards and config.privacy.unit != "off":
        deal["examples"] = _digest(dataset, shards)
    text = json.dumps(deal, sort_keys=True, default=str)
    return f"{dataset.name}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def ledger_name(config: Config, owner: Site) -> str:
    """Names the examples in the ledger of a client on its owner's machine, by what is known before they are opened.

    Where they lie, or, for a part of data that everybody has, the config's word for it.
    """
    if owner.data is not None:
        return owner.data_name
    deal = [config.data, asdict(config.partition), config.clients, config.seed, config.names]
    return f"part#{hashlib.sha256(json.dumps(deal, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def _digest(dataset: Dataset, shards: Mapping[str, np.ndarray]) -> str:
    """Of the arrays themselves and who holds what: a file may change in its place, a loader give another order."""
    digest = xxhash.xxh3_128()
    for name, array in [("", dataset.train.inputs), ("", dataset.train.targets), *shards.items()]:
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_ledgers(config: Config, data: str | None, found: list[Problem]) -> None:
    """A problem where the folder cannot be written, or holds the ledgers of other data than `data`; leaves no trace."""
    if config.privacy.unit == "off" or config.privacy.ledger is None:
        return
    folder = Path(config.privacy.ledger)
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        rule = f"ledgers cannot be written there: {told(error)}"
        fix = "Name a folder that can be written, or privacy.ledger=null"
        found.append(Problem("privacy.ledger", folder, rule, fix))
    for missing in made:
        if missing.exists():
            missing.rmdir()
    if data is not None and not made:
        _check_deal(folder, data, found)


def _check_deal(folder: Path, data: str, found: list[Problem]) -> None:
    """Dealt anew, an example may lie with another client, whose account knows nothing of what it has spent."""
    from fedq.privacy import Ledger, LedgerError

    for path in sorted([*folder.glob(f"*/{LEDGER}"), *folder.glob(SERVER_LEDGER)]):
        try:
            others = {row.spend.data for row in Ledger(path, access="read").rows()} - {data}
        except LedgerError:
            continue  # its client refuses, and says so
        if others:
            rule = f"holds ledgers of {others.pop()}, this run is on {data}: examples dealt anew would be spent twice"
            fix = "Use the very data, partition, clients and seed of those runs, or another folder"
            found.append(Problem("privacy.ledger", folder, rule, fix))
            return
