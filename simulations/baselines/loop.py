"""A plain loop in torch: FedAvg as an engineer writes it who needs nothing else.   python loop.py PLAN THREADS"""

import sys

import job
import torch
from torch.nn import functional


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    plan = job.Plan(sys.argv[1])
    images, labels = job.split("train")
    test_images, test_labels = job.split("t10k")
    model, steps = job.network(plan), 0
    master = {name: value.clone() for name, value in model.state_dict().items()}
    score = job.accuracy(model, test_images, test_labels)
    for cohort in plan.cohorts:
        job.first_round()
        total = {name: torch.zeros_like(value) for name, value in master.items()}
        examples = sum(len(plan.shards[client]) for client in cohort)
        for client in cohort:
            model.load_state_dict(master)
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=job.LR)
            shard = torch.from_numpy(plan.shards[client])
            for rows in shard.split(job.BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                steps += 1
            for name, value in model.state_dict().items():
                total[name] += value * (len(shard) / examples)
        master = total
        model.load_state_dict(master)
        score = job.accuracy(model, test_images, test_labels)
    job.report(score, steps)


if __name__ == "__main__":
    main()
