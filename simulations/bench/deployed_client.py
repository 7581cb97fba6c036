"""The processes of `simulations.bench.deployed`. Each prints when its reply could leave.

python -m simulations.bench.deployed_client message FILE    Flower's process of one message, with fedq's client
python -m simulations.bench.deployed_client plain SHARD     the same, with a Flower app of ten lines
python -m simulations.bench.deployed_client imports SHARD   the same, without an app
python -m simulations.bench.deployed_client node FILE       as `fedq client node`: a fork for each line on stdin
"""

import importlib
import os
import sys
import time


def message(path: str) -> None:
    """Answer the message with fedq's client app."""
    from fedq.app import client
    from fedq.flower import private as flower

    flower.enter()
    with open(path, encoding="ascii") as file:
        context, request = (bytes.fromhex(line) for line in file)
    reply = client(flower.deserialized(request), flower.deserialized_context(context))
    assert "fedq.packets" in reply.content, dict(reply.content)


def node(path: str) -> None:
    """Fork for each line, with the imports that `fedq client node` has."""
    for name in ("flwr.supernode.runtime.run_clientapp", "fedq.app"):
        importlib.import_module(name)
    print("ready", flush=True)
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            message(path)
            print(time.time(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def main(kind: str, path: str) -> None:
    sys.argv[:] = ["flwr-clientapp"]
    if kind == "node":
        node(path)
        return
    importlib.import_module("flwr.supernode.cli")  # all that the program `flwr-clientapp` imports by itself
    if kind == "message":
        message(path)
    elif kind == "plain":
        from simulations.bench.startup_client import plain_client

        plain_client(path)
    print(time.time())  # how long the process takes to end keeps nobody waiting


if __name__ == "__main__":
    main(*sys.argv[1:3])
