"""The client: admit, decode, fit, encode, commit, reply. Knows wire, codec and training; not the server."""

from fedq.client.client import Client, Privacy, accept_round, check_account, check_holdout
from fedq.client.state import ClientState

__all__ = ["Client", "ClientState", "Privacy", "accept_round", "check_account", "check_holdout"]
