"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378): control variates correct the drift of clients.

Algorithm 1 of the paper with option II. c is the server's control variate ("control"), c_i a client's own.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedq.algorithms.algorithm import UPDATE, State, Task, Uplink, Vector

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold:
    """Clients send two packets, the update and the change of c_i; the server sends c beside the model."""

    uplink = (Uplink(UPDATE), Uplink(CONTROL, weighted=False))
    downlink = (CONTROL,)
    plain_sgd = True

    def client_state(self, size: int) -> State:
        """c_i = 0."""
        return {CONTROL: np.zeros(size, np.float32)}

    def server_state(self, size: int) -> State:
        """c = 0."""
        return {CONTROL: np.zeros(size, np.float32)}

    def client_update(self, task: Task, state: State) -> State:
        """Each step follows g_i(y) - c_i + c. Afterwards c_i+ = c_i - c + (x - y) / (K lr).

        c_i moves by what the server decodes, so c stays the mean of all c_i whatever the codec rounds away.
        """
        own, shared = state[CONTROL], task.received[CONTROL]
        drift = torch.from_numpy(shared - own)
        trained = task.fit(lambda weights: drift.to(weights))
        task.send(UPDATE, trained - task.weights)
        task.send(CONTROL, (task.weights - trained) / np.float32(task.step_size) - shared)
        return {CONTROL: own + task.decoded(CONTROL)}

    def server_update(self, means: State, state: State, *, participation: float) -> tuple[Vector, State]:
        """x+ = x + the server's step along the mean update; c+ = c + |S| / N times the mean change of c_i."""
        shared = state[CONTROL] + np.float32(participation) * means[CONTROL]
        return -means[UPDATE], {CONTROL: shared}
