"""The interface of a federated algorithm. Depends on vectors; does not know codecs, messages, models or noise.

Every vector is float32 of shape (size,): the model as one vector, in the order of its layout. All state is named
vectors, so that it can be saved and sent without special cases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedq.core.packet_names import UPDATE

__all__ = ["UPDATE", "Algorithm", "Correction", "State", "Task", "Uplink", "Vector"]

Vector = NDArray[np.float32]
State = Mapping[str, Vector]
# From the current weights, shape (size,), to what is added to the gradient of a local step, of the same shape.
Correction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Uplink:
    """A packet that each client sends in each round, and how the server averages it.

    `weighted`: by the clients' weights (`strategy.weighting`); else all clients count the same.
    """

    name: str
    weighted: bool = True


class Task(Protocol):
    """One client's part of one round, as an algorithm sees it."""

    @property
    def weights(self) -> Vector:
        """The global model as this client decoded it."""

    @property
    def received(self) -> State:
        """The vectors that the algorithm's `downlink` names, as this client decoded them."""

    @property
    def step_size(self) -> float:
        """Learning rate times the number of optimizer steps of this round. Under DP both are public."""

    def fit(self, correction: Correction | None = None) -> Vector:
        """Train on the client's data from `weights` and return the new weights. Once in a round under DP.

        The correction is added to the gradient of each step, under DP after the noise: it may depend on global or
        noised values alone, so it costs no privacy.
        """

    def send(self, name: str, vector: Vector) -> None:
        """Encode a packet of the reply."""

    def decoded(self, name: str) -> Vector:
        """The vector that the server will decode from a packet that was sent."""


class Algorithm(Protocol):
    """A federated algorithm. `uplink`: packets of a reply. `downlink`: state of the server that is sent to clients."""

    @property
    def uplink(self) -> tuple[Uplink, ...]: ...

    @property
    def downlink(self) -> tuple[str, ...]: ...

    @property
    def plain_sgd(self) -> bool:
        """Whether its formulas hold only where clients train by SGD without momentum: others are then refused."""

    def client_state(self, size: int) -> State:
        """What a client keeps between its rounds, before its first."""

    def server_state(self, size: int) -> State:
        """What the server keeps between rounds, before the first; it includes all that `downlink` names."""

    def client_update(self, task: Task, state: State) -> State:
        """One client's round: train, send each packet of `uplink`, return the new state.

        The new state counts only if the server accepts the packets; else the client goes on from the old one.
        """

    def server_update(self, means: State, state: State, *, participation: float) -> tuple[Vector, State]:
        """The pseudo-gradient for the server optimizer, and the new state, from the mean of each uplink packet.

        `participation`: accepted clients of this round over all clients, in (0, 1].
        """
