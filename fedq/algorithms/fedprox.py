"""FedProx (Li et al. 2020, arXiv:1812.06127): FedAvg whose clients are held near the global model."""

from dataclasses import dataclass

import torch

from fedq.algorithms.algorithm import UPDATE, State, Task
from fedq.algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """Each client minimizes its loss plus mu / 2 times the squared distance to the global model."""

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.mu < float("inf"):
            raise ValueError(f"mu={self.mu}: must be a finite number above 0; use algorithm=fedavg for none")

    def client_update(self, task: Task, state: State) -> State:
        """Train with the gradient of the proximal term, mu * (w - w_global), added to each step's gradient."""
        start = torch.from_numpy(task.weights)
        trained = task.fit(lambda weights: self.mu * (weights - start.to(weights)))
        task.send(UPDATE, trained - task.weights)
        return state
