"""One message to one fresh client process, as a SuperNode starts it. Knows Flower's client program; times itself.

python -m simulations.bench.startup_client fedq FILE      fedq's client; simulations.bench.deployed wrote its message
python -m simulations.bench.startup_client plain SHARD    a Flower app of ten lines, the same model
"""

import importlib
import sys
import time

# What `flwr-clientapp` itself imports before it loads an app.
importlib.import_module("flwr.supernode.runtime.run_clientapp")


def fedq_client(path: str) -> None:
    """Build the client from its node config and train one round, the ledger written as always."""
    from fedq.app.node import client_of
    from fedq.flower import private as flower
    from fedq.flower import wire

    flower.enter()
    with open(path, encoding="ascii") as file:
        context, request = (bytes.fromhex(line) for line in file)
    client = client_of(flower.deserialized_context(context))
    assert client.train(wire.read_request(flower.deserialized(request).content)).packets


def plain_client(shard: str) -> None:
    """What a quickstart's train function does: load, a few SGD steps, float32 arrays out."""
    import numpy as np
    import torch
    from flwr.app import ArrayRecord

    with np.load(shard) as file:
        inputs, targets = torch.from_numpy(file["inputs"]), torch.from_numpy(file["targets"])
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert ArrayRecord(model.state_dict())


if __name__ == "__main__":
    {"fedq": fedq_client, "plain": plain_client}[sys.argv[1]](sys.argv[2])
    print(time.time())  # when the reply could leave; how long the process takes to end keeps nobody waiting
