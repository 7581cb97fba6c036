"""The peer's side: a Flower app on the Ray engine whose clients send back what they get. Knows nothing of fedq.

main() takes settings as JSON in argv, orders as JSON lines on stdin, and answers seconds as JSON lines on stdout.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()


@client.train()
def echo(message: Message, context: Context) -> Message:
    """As little as a client can do."""
    return Message(message.content, reply_to=message)


def main() -> None:
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints must not end up between answers
    from flwr.simulation import run_simulation

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        nodes = _all_nodes(grid, settings["nodes"])
        _round(grid, nodes, _bytes(1))  # Ray's workers start and import Flower with their first task
        print("{}", file=answers)
        contents: dict[str, RecordDict] = {}  # made once: the engine is timed, not how its content is made
        for line in sys.stdin:
            order = json.loads(line)
            content = contents.get(line) or contents.setdefault(line, _content(order))
            print(json.dumps({"seconds": _round(grid, nodes[: order["tasks"]], content)}), file=answers)

    run_simulation(
        server,
        client,
        settings["nodes"],
        backend_config={
            # One actor for each core. A quarter, a half or two cores for each was no faster, within the noise.
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": settings["num_cpus"], "_temp_dir": settings["folder"]},
        },
    )


def _all_nodes(grid: Grid, expected: int) -> list[int]:
    while len(nodes := list(grid.get_node_ids())) < expected:
        time.sleep(0.05)
    return nodes


def _round(grid: Grid, nodes: list[int], content: RecordDict) -> float:
    """Seconds from the first request made to the last reply held."""
    begun = time.perf_counter()
    requests = [Message(content, dst_node_id=node, message_type="train") for node in nodes]
    replies = list(grid.send_and_receive(requests))
    taken = time.perf_counter() - begun
    if len(replies) != len(nodes) or any(reply.has_error() for reply in replies):
        raise RuntimeError(f"{len(replies)} replies to {len(nodes)} requests, or an error among them")
    return taken


def _content(order: dict[str, Any]) -> RecordDict:
    return _bytes(order["bytes"]) if "bytes" in order else _array(order["array"])


def _bytes(size: int) -> RecordDict:
    """The records of one of fedq's requests, with as many bytes."""
    numbers = ConfigRecord({"round": 1, "accepted": -1})
    return RecordDict({"request": numbers, "packets": ConfigRecord({"model": bytes(size)})})


def _array(size: int) -> RecordDict:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return RecordDict({"arrays": ArrayRecord({"weights": Array(values)})})
