"""Check a SuperLink connection of Flower's config file before a run starts. Depends on TOML and sockets."""

import os
import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fedq.config import ConfigError, Problem

_PATIENCE = 5.0  # seconds in which a running SuperLink must accept


@dataclass(frozen=True)
class Connection:
    name: str
    address: str
    secure: bool = True  # TLS, with the root certificates of the connection


def flwr_home() -> Path:
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def find(name: str | None, *, insecure: bool = False) -> Connection:
    """The named connection, or Flower's default one, if a SuperLink answers there; else `ConfigError`.

    `insecure`: also accept a connection without TLS, or one that any system certificate would satisfy.
    """
    path = flwr_home() / "config.toml"
    key = "runtime.connection"
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(key, name, f"{path} cannot be read: {error}", "Fix the file")]) from None
    if not isinstance(known, dict):
        raise ConfigError([Problem(key, name, f"{path}: superlink must be a table", "Fix the file")])
    names = sorted(n for n, value in known.items() if isinstance(value, dict))
    fix = f"docs/deploy.md shows one; {path} knows {', '.join(names) or 'none'}"
    chosen = name or known.get("default")
    if not chosen:
        raise ConfigError([Problem(key, name, "Flower's config has no default connection", fix)])
    if chosen not in names:
        raise ConfigError([Problem(key, chosen, "there is no such SuperLink connection", fix)])
    values = known[chosen]
    address = str(values.get("address") or "")
    if address.startswith(":") or not address:  # Flower's own names for an engine on this machine
        rule = f"its address is {address or 'not set'}: Flower's simulation, not a SuperLink that clients connect to"
        raise ConfigError([Problem(key, chosen, rule, "Use runtime=ray, or name a connection to a SuperLink")])
    certificates = values.get("root-certificates")
    if certificates and not (Path(str(certificates)).is_absolute() and Path(str(certificates)).is_file()):
        rule = f"its root-certificates {certificates} are not there, or no absolute path"
        raise ConfigError([Problem(key, chosen, rule, f"Fix {path}")])
    marked = values.get("insecure") is True
    secure = bool(certificates) and not marked
    if not secure and not insecure:
        rule = (
            "is marked insecure: models and updates would be sent without encryption"
            if marked
            else "names no certificates"
        )
        hint = f'Add root-certificates = "/path/to/ca.crt" to it in {path}, or use --insecure to continue anyway'
        raise ConfigError([Problem(key, chosen, rule, hint)])
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError([Problem(key, chosen, f"its address {address} is not HOST:PORT", f"Fix {path}")])
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError) as error:  # an invalid host name raises UnicodeError
        rule = f"no SuperLink answers at {address} ({getattr(error, 'strerror', None) or error})"
        raise ConfigError([Problem(key, chosen, rule, f"Start it (docs/deploy.md), or fix {path}")]) from None
    return Connection(chosen, address, secure)
