"""Which node may speak in which client's name. Knows public keys and one file; not messages or what a client does.

A node key says who may connect to a SuperLink, not under which name. So the operator of the server may write down the
public key of each client, and then no other node is taken for it, nor believed where it declines in its name.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives import serialization

FILE = "node-names.toml"  # in the server's $FEDQ_HOME: NAME = "the client's public key, as in its .pub file"


@dataclass(frozen=True)
class NodeNames:
    """`keys`: name -> fingerprint of the one key that it belongs to. `trusted`: every node is this machine's own."""

    keys: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False

    def verdict(self, name: str, key: str) -> Literal["own", "unknown", "another's"]:
        """Whether a node with that key (a fingerprint; "": it has none) speaks in its own name."""
        if self.trusted:
            return "own"
        if name not in self.keys:
            return "another's" if key and key in self.keys.values() else "unknown"
        return "own" if self.keys[name] == key else "another's"


def read_node_names(path: Path) -> NodeNames:
    """The names that the file gives to keys; none where there is no file. ValueError names the line and the fix."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return NodeNames()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a list of node names in TOML: {error}") from None
    found: dict[str, str] = {}
    for name, key in content.items():
        try:
            found[name] = fingerprint(str(key).encode())
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}; give the line of the client's .pub file") from None
    if twice := sorted(name for name in found if list(found.values()).count(found[name]) > 1):
        raise ValueError(f"{path}: {', '.join(twice)} have one key; each client needs a key of its own")
    return NodeNames(found)


def fingerprint(public_key: bytes) -> str:
    """SHA256:... of a key in OpenSSH's form, or in PEM as Flower has it; "" for no key. ValueError for what is none."""
    if not public_key:
        return ""
    try:
        if public_key.startswith(b"-----"):
            key = serialization.load_pem_public_key(public_key)
        else:
            key = serialization.load_ssh_public_key(public_key)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return f"SHA256:{hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()}"
    except Exception as error:  # cryptography raises many kinds over what is no key
        raise ValueError(f"no public key ({error or type(error).__name__})") from None


def fingerprint_of_node(public_key: bytes) -> str:
    """The same of whatever a node registered: a key that cannot be read is one that no name belongs to."""
    try:
        return fingerprint(public_key)
    except ValueError:
        return f"unreadable:{hashlib.sha256(public_key).hexdigest()}"
