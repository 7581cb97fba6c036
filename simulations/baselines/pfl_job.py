"""The job in pfl-research 0.6, as its tutorials write it.

python pfl_job.py PLAN THREADS                                              one process
python -m torch.distributed.run --nproc-per-node=2 pfl_job.py PLAN 1        two, which share clients and evaluation
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
from pfl.metrics import Metrics, StringMetricName, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self, plan: job.Plan) -> None:
        super().__init__()
        self.layers = job.network(plan)
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


class EveryRound(CentralEvaluationCallback):  # type: ignore[misc,type-arg]
    """Evaluates after each round, as all contenders do; pfl's own callback leaves out the first one."""

    accuracy = 0.0

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        metrics = self._eval(model)[1]
        self.accuracy = float(metrics[StringMetricName("Central val | accuracy")].overall_value)
        # pfl reports the evaluation before training in round 0, and no figure may have two values in a round.
        return False, metrics if central_iteration > 0 else Metrics()


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    plan = job.Plan(sys.argv[1])
    images, labels = job.split("train")
    test = Dataset(raw_data=list(job.split("t10k")), eval_kwargs={"eval": True})
    # Endless, because with several processes pfl draws ahead.
    drawn = cycle([client for cohort in plan.cohorts for client in cohort])

    def user(client: int) -> Dataset:
        job.first_round()
        rows = torch.from_numpy(plan.shards[client])
        return Dataset(raw_data=[images[rows], labels[rows]], user_id=str(client), eval_kwargs={"eval": True})

    sizes = {client: len(shard) for client, shard in enumerate(plan.shards)}
    users = FederatedDataset(user, lambda: next(drawn), user_id_to_weight=sizes)
    network = Network(plan)
    model = PyTorchModel(
        network,
        torch.optim.SGD,
        torch.optim.SGD(network.parameters(), lr=1.0),  # the mean update is applied as it is
    )
    training = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=job.LR, local_batch_size=job.BATCH)
    evaluation = NNEvalHyperParams(local_batch_size=job.EVALUATION_BATCH)
    evaluated = EveryRound(test, model_eval_params=evaluation)
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
        callbacks=[evaluated],
    )
    steps = torch.tensor(network.steps)
    if pytorch_ops.distributed.world_size > 1:
        torch.distributed.all_reduce(steps)
    if pytorch_ops.distributed.global_rank == 0:
        job.report(evaluated.accuracy, int(steps))


if __name__ == "__main__":
    main()
