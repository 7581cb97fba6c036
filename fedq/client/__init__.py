"""The client: admit, decode, fit, encode, commit, reply. Knows wire, codec and training; not the server."""

from fedq.client.client import Client, Privacy, check_account, check_holdout
from fedq.client.state import ClientState

__all__ = ["Client", "ClientState", "Privacy", "check_account", "check_holdout"]
