"""The job in Flower with its Ray engine, as its documentation writes it; with `dp`, clients train under Opacus.

python flower_job.py PLAN plain|dp
"""

import os
import sys
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import job
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

PLAN, PRIVATE = "FEDQ_PEER_PLAN", "FEDQ_PEER_DP"  # variables of the environment, which Ray's actors inherit

client_app, server_app = ClientApp(), ServerApp()


@lru_cache(maxsize=1)
def data() -> tuple[job.Plan, torch.Tensor, torch.Tensor]:
    torch.set_num_threads(1)  # an actor has one CPU
    plan = job.Plan(os.environ[PLAN])
    return plan, *job.split("train")


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch on the shard that the server names."""
    plan, images, labels = data()
    rows = torch.from_numpy(plan.shards[int(message.content["config"]["client"])])
    model = job.network(plan)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    data_set = TensorDataset(images[rows], labels[rows])
    if os.environ.get(PRIVATE):
        steps = fit_privately(model, data_set, plan.private_steps)
    else:
        steps = fit(model, DataLoader(data_set, batch_size=job.BATCH), torch.optim.SGD(model.parameters(), lr=job.LR))
    metrics = MetricRecord({"num-examples": len(rows), "steps": steps})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def fit(model: nn.Module, loader: Any, optimizer: Any) -> int:
    """One pass over the loader; returns its number of steps. The plan has shuffled the examples."""
    steps = 0
    for x, y in loader:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps += 1
    return steps


def fit_privately(model: nn.Module, data_set: TensorDataset, steps: int) -> int:
    """DP-SGD by Opacus' PrivacyEngine: Poisson batches at the rate 1 / steps, so 32 examples in the mean shard."""
    from opacus import PrivacyEngine
    from opacus.data_loader import DPDataLoader

    model.to(memory_format=torch.contiguous_format)  # Opacus' gradients of convolutions are wrong on channels_last
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=job.LR),
        data_loader=DPDataLoader(data_set, sample_rate=1 / steps),
        noise_multiplier=job.NOISE,
        max_grad_norm=job.CLIP,
    )
    return fit(private, loader, optimizer)


class Planned(FedAvg):
    """FedAvg whose cohorts are those of the plan."""

    def __init__(self, plan: job.Plan, **options: Any) -> None:
        super().__init__(**options)
        self._plan, self.steps = plan, 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        job.first_round()
        nodes = sorted(grid.get_node_ids())
        for client in self._plan.cohorts[server_round - 1]:
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})})
            yield Message(content, dst_node_id=nodes[client], message_type="train")

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.steps += sum(int(reply.content["metrics"]["steps"]) for reply in replies)
        return super().aggregate_train(server_round, replies)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    torch.set_num_threads(2)
    plan = job.Plan(os.environ[PLAN])
    images, labels = job.split("t10k")
    model, scores = job.network(plan), []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        scores.append(job.accuracy(model, images, labels))
        return MetricRecord({"accuracy": scores[-1]})

    strategy = Planned(plan, fraction_evaluate=0.0, min_available_nodes=len(plan.shards))
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=len(plan.cohorts), evaluate_fn=evaluate)
    job.report(scores[-1], strategy.steps)


def main() -> None:
    os.environ[PLAN] = str(Path(sys.argv[1]).resolve())
    if sys.argv[2] == "dp":
        os.environ[PRIVATE] = "1"
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    import flower_job  # by its name, so that Ray's actors find it
    from flwr.simulation import run_simulation

    # A short path for Ray's files, because a socket's path is limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp" if Path("/tmp").is_dir() else None) as folder:
        run_simulation(
            flower_job.server_app,
            flower_job.client_app,
            len(job.Plan(sys.argv[1]).shards),
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"num_cpus": 2, "_temp_dir": folder},
            },
        )


if __name__ == "__main__":
    main()
