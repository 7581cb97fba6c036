"""One message to one fresh client process, as a SuperNode starts it. Knows Flower's client program; times itself.

python -m simulations.bench.startup_client fedq OVERRIDES_JSON SHARD     fedq's client app
python -m simulations.bench.startup_client plain OVERRIDES_JSON SHARD    a Flower app of ten lines, the same model
"""

import importlib
import json
import sys
import tempfile
import time

# What `flwr-clientapp` itself imports before it loads an app.
importlib.import_module("flwr.supernode.runtime.run_clientapp")


def fedq_client(overrides: str, shard: str) -> None:
    """Build the client from its node config and train one round, the ledger written as always."""
    import numpy as np
    from flwr.app import Context, RecordDict

    from fedq import codec
    from fedq.app.node import client_of
    from fedq.flower import wire

    with tempfile.TemporaryDirectory() as state:
        node = {"partition-id": 0, "data-path": shard, "state-dir": state}
        client = client_of(Context(1, 1, node, RecordDict(), {"overrides": overrides}))
        layout = client.trainer.layout
        model = codec.encode(np.zeros(layout.size, np.float32), client.codec, layout=layout, kind="weights", round=1)
        reply = client.train(wire.Request(1, -1, {"model": model}))
    assert reply.packets


def plain_client(overrides: str, shard: str) -> None:
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
    {"fedq": fedq_client, "plain": plain_client}[sys.argv[1]](json.dumps(json.loads(sys.argv[2])), sys.argv[3])
    print(time.time())  # when the reply could leave; how long the process takes to end keeps nobody waiting
