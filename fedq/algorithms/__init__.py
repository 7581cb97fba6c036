"""Federated algorithms: which packets travel, and what client and server do with them. One file each.

An algorithm is a frozen dataclass; its fields are its options (conf/algorithm/NAME.yaml). docs/extending.md adds one.
"""

from fedq.algorithms.algorithm import UPDATE, Algorithm, Correction, State, Task, Uplink, Vector
from fedq.algorithms.fedavg import FedAvg
from fedq.algorithms.fedprox import FedProx
from fedq.algorithms.scaffold import Scaffold

# All there are: `algorithm=NAME`.
ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
}

__all__ = [
    "ALGORITHMS",
    "UPDATE",
    "Algorithm",
    "Correction",
    "FedAvg",
    "FedProx",
    "Scaffold",
    "State",
    "Task",
    "Uplink",
    "Vector",
]
