"""The job in pfl-research 0.6, as its tutorials write it.

python pfl_job.py PLAN THREADS      or under torch.distributed.run with 2 processes
"""

import sys
from itertools import cycle

import job
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = job.network()
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.train(not eval)
        self.steps += 1
        return functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:
        self.eval()
        return {"accuracy": Weighted(int((self(x).argmax(1) == y).sum()), len(y))}


def main() -> None:
    torch.set_num_threads(1 if pytorch_ops.distributed.world_size > 1 else int(sys.argv[2]))
    plan = job.Plan(sys.argv[1])
    images, labels = job.training(plan)
    test = Dataset(raw_data=list(job.split("t10k")), eval_kwargs={"eval": True})
    # Endless: with several processes pfl draws ahead.
    drawn = cycle([client for cohort in plan.cohorts for client in cohort])

    def user(client: int) -> Dataset:
        job.first_round()
        rows = torch.from_numpy(plan.shards[client])
        return Dataset(raw_data=[images[rows], labels[rows]], user_id=str(client), eval_kwargs={"eval": True})

    sizes = {client: len(shard) for client, shard in enumerate(plan.shards)}
    users = FederatedDataset(user, lambda: next(drawn), user_id_to_weight=sizes)
    network = Network()
    model = PyTorchModel(
        network,
        torch.optim.SGD,
        torch.optim.SGD(network.parameters(), lr=1.0),  # the mean update is applied as it is
    )
    training = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=job.LR, local_batch_size=job.BATCH)
    evaluation = NNEvalHyperParams(local_batch_size=250)
    central = CentralEvaluationCallback(test, model_eval_params=evaluation)
    FederatedAveraging().run(
        backend=SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()]),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=len(plan.cohorts),
            evaluation_frequency=10**9,  # no clients evaluate: the server does
            train_cohort_size=job.COHORT,
            val_cohort_size=0,
        ),
        model_train_params=training,
        model_eval_params=evaluation,
        callbacks=[central],
    )
    if pytorch_ops.distributed.global_rank == 0:
        job.report(job.accuracy(network, *job.split("t10k")), network.steps)


if __name__ == "__main__":
    main()
