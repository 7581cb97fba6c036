"""Client processes that train round after round and say where they are: `python -m tests.e2e.killed_client HOME`.

Started by tests/e2e/test_kills.py, which kills them. For each line `ROUND` on stdin a process is forked (its imports
are there already), whose client, ledger and state are those of a deployment. On stdout: its pid, each phase as it
begins, `left ROUND` once the reply of a round is whole (from then on it may have been sent), and `dead` when it is.
Only where a phase begins is told, by functions that call the real ones.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedq import codec
from fedq.config import compose
from fedq.experiment import build
from fedq.experiment.ledgers import LEDGER, Account
from fedq.flower import wire
from fedq.privacy import dpsgd, ledger
from fedq.training.numerics import use_one_thread

WORDS = [
    "clients=2",
    "model.hidden=[16]",
    "privacy=example",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=2",
    "train.steps=3",
    "train.epochs=null",
    "codec=int8",
    "codec.error_feedback=true",
    "quant=int8",
]


def say(text):
    os.write(1, f"{text}\n".encode())


def told(owner, name, phase):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        say(phase)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def request(experiment, round):
    packet = codec.encode(experiment.initial, "float32", layout=experiment.layout, kind="weights", round=round)
    return wire.Request(round, round - 1, {"model": packet})


def train(experiment, home, first):
    """In the forked process."""
    client = experiment.client("0", folder=home / "run", run="kills", account=Account(home / LEDGER), durable=True)
    told(client, "_received", "receive")
    told(client, "_admit", "admit")
    told(ledger.Ledger, "spend", "spend")
    told(ledger.Ledger, "_write_tip", "tip")
    told(dpsgd, "_set_gradients", "step")
    told(client.state, "commit", "commit")
    told(client.state, "note_evidence", "evidence")
    for round in range(first, first + 10_000):
        client.train(request(experiment, round))
        say(f"left {round}")


def main(home):
    use_one_thread()
    experiment = build(compose(WORDS))
    with TemporaryDirectory() as elsewhere:  # what a first round imports and measures is no part of a round
        experiment.client("1", folder=Path(elsewhere), run="first").train(request(experiment, 1))
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            say(f"pid {os.getpid()}")
            train(experiment, home, int(line))
            os._exit(0)
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
