"""The server: who is asked, what is sent, which replies count, how the model moves. Not the client."""

from fedq.server.broadcast import Broadcast, Downlink
from fedq.server.link import GridLink
from fedq.server.loop import Outcome, Rules, run_rounds
from fedq.server.pruning import Pruning
from fedq.server.roster import Roster, say_hello
from fedq.server.sampling import Dealer
from fedq.server.strategy import QuantizedFedAvg
from fedq.server.total import Total

__all__ = [
    "Broadcast",
    "Dealer",
    "Downlink",
    "GridLink",
    "Outcome",
    "Pruning",
    "QuantizedFedAvg",
    "Roster",
    "Rules",
    "Total",
    "run_rounds",
    "say_hello",
]
