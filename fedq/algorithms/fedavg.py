"""Federated averaging (McMahan et al. 2017, arXiv:1602.05629): clients train, the server averages their updates.

With a server optimizer other than SGD of learning rate 1 it is FedOpt (Reddi et al. 2021, arXiv:2003.00295).
"""

from dataclasses import dataclass

from fedq.algorithms.algorithm import UPDATE, State, Task, Uplink, Vector


@dataclass(frozen=True)
class FedAvg:
    """Neither side keeps any state, and only updates travel."""

    uplink = (Uplink(UPDATE),)
    downlink = ()
    plain_sgd = False

    def client_state(self, size: int) -> State:
        """Nothing."""
        return {}

    def server_state(self, size: int) -> State:
        """Nothing."""
        return {}

    def client_update(self, task: Task, state: State) -> State:
        """Train from the global model and send the difference."""
        task.send(UPDATE, task.fit() - task.weights)
        return state

    def server_update(self, means: State, state: State, *, participation: float) -> tuple[Vector, State]:
        """The pseudo-gradient is minus the mean update."""
        return -means[UPDATE], state
