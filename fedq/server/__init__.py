"""The server: who is asked, what is sent, which replies count, how the model moves. Not the client."""

from fedq.server.adapter import QuantizedFedAvg
from fedq.server.broadcast import Broadcast, Downlink
from fedq.server.flower_loop import FlowerLoop
from fedq.server.link import GridLink
from fedq.server.loop import Outcome, Rules, run_rounds
from fedq.server.pruning import Pruning
from fedq.server.roster import Roster, say_hello
from fedq.server.round_aggregate import RoundAggregate
from fedq.server.sampling import CyclicSampler
from fedq.server.strategy import Strategy, Terms

__all__ = [
    "Broadcast",
    "CyclicSampler",
    "Downlink",
    "FlowerLoop",
    "GridLink",
    "Outcome",
    "Pruning",
    "QuantizedFedAvg",
    "Roster",
    "RoundAggregate",
    "Rules",
    "Strategy",
    "Terms",
    "run_rounds",
    "say_hello",
]
