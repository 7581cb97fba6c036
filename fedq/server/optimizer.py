"""The server optimizer: a step of the global model along the pseudo-gradient (FedOpt, arXiv:2003.00295)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from fedq.core.compiler import without_compiler

MakeOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Plain SGD of learning rate 1: the weighted mean itself, as in FedAvg."""
    return torch.optim.SGD(parameters, lr=1.0)


class ServerOptimizer:
    """One run's optimizer, over one flat parameter. `make`: from the parameter list to a torch optimizer.

    `statistics`: slices of the vector that are averaged but not trained (running means, observed ranges). They take
    the plain mean, whatever the optimizer: with momentum a running variance may become negative.
    """

    def __init__(self, make: MakeOptimizer = sgd, statistics: Sequence[slice] = ()) -> None:
        self._make, self._statistics = make, statistics
        self._optimizer: torch.optim.Optimizer | None = None

    def step(self, master: np.ndarray, pseudo_gradient: np.ndarray) -> np.ndarray:
        """The next global model; both arrays float32, shape (layout.size,)."""
        parameter = torch.nn.Parameter(torch.from_numpy(master.copy()))
        if self._optimizer is None:
            self._optimizer = self._make([parameter])
        else:
            # The state belongs to the parameter object: hand the optimizer the same one, with the new values.
            parameter = self._optimizer.param_groups[0]["params"][0]
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(master))
        parameter.grad = torch.from_numpy(pseudo_gradient)
        with without_compiler() if type(self._optimizer).__module__.startswith("torch.optim") else nullcontext():
            self._optimizer.step()
        parameter.grad = None
        stepped = parameter.detach().numpy().copy()
        for part in self._statistics:
            stepped[part] = master[part] - pseudo_gradient[part]
        return stepped
