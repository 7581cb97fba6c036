"""What is audited, from the outside: a client that answers one request. Knows clients and messages; no bug and no test.

An auditor chooses the examples and the source of randomness, and sees what leaves, what the ledger holds, and what each
step hands to the optimizer: at least what any adversary of the guarantee sees.
"""

import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedq import codec as packets
from fedq.client import Client, ClientState, Privacy
from fedq.data import Examples
from fedq.experiment import Experiment
from fedq.flower import wire
from fedq.privacy import DPPlan, Ledger, RandomSource, Spend
from fedq.training import Recipe, Trainer

Examined = Callable[[Examples], Examples]
# In memory, where the machine has such a folder: syncing spends that buy nothing takes most of an audit's time.
_IN_MEMORY = Path("/dev/shm")
_IDENTITY = "audited"


class AuditError(RuntimeError):
    """The audit could not be carried out; it says nothing of the mechanism."""


@dataclass(frozen=True)
class Answer:
    """All that one request brought about. `refused`: why there is no reply, for the auditor's eyes alone."""

    message: dict[str, Any]  # "record.key" -> what a server reads there; of a packet its header
    packet: bytes
    update: np.ndarray  # float32, as the server decodes it
    spends: tuple[Spend, ...]
    gradients: tuple[np.ndarray, ...]  # float64 (trained values,): what each step handed to the optimizer
    refused: str | None = None


@dataclass(frozen=True)
class Subject:
    """A mechanism under audit: its public plan, and a way to make it answer.

    `prepare` is what the client's loader does to its examples. `client` makes the client; both are fedq's own but where
    a test puts others in their place.
    """

    plan: DPPlan
    trainer: Trainer
    codec: packets.Codec
    weights: np.ndarray  # float32, what the server sends
    make_random: Callable[[], RandomSource]
    prepare: Examined = lambda examples: examples
    client: Callable[..., Client] = Client
    seed: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def answer(
        self,
        examples: Examples,
        random: RandomSource | None = None,
        *,
        weights: np.ndarray | None = None,
        round: int = 1,
        watch: Callable[[np.ndarray], None] = lambda gradient: None,
    ) -> Answer:
        """What a client that holds these examples answers; `random`: in place of its own source.

        `weights`, float32 (layout.size,): what the server sends in place of the subject's own. `watch` is called with
        what each step hands to the optimizer.
        """
        seen: list[np.ndarray] = []

        def step(gradient: np.ndarray) -> None:
            seen.append(gradient)
            watch(gradient)

        trainer = copy.copy(self.trainer)
        trainer.recipe = _Watched(**vars(self.trainer.recipe), watch=step)
        ledger = Path(tempfile.mkdtemp(dir=self.folder)) / "ledger.sqlite"
        # The audit's spends are many and buy nothing: the budget of the run is not what is on trial.
        plan = replace(self.plan, target_epsilon=math.inf)
        source = random if random is not None else self.make_random()
        client = self.client(
            _IDENTITY,
            trainer,
            self.codec,
            shard=lambda: self.prepare(examples),
            state=ClientState(None),
            seed=self.seed,
            privacy=Privacy(plan, ledger, source, "audit", "audit"),
        )
        sent = self.weights if weights is None else weights
        told = packets.encode(sent, "float32", layout=trainer.layout, kind="weights", round=round)
        try:
            reply = client.train(wire.Request(round, -1, {wire.MODEL: told}))
            packet = reply.packets.get(wire.UPDATE, b"")
            update = packets.decode(packet, trainer.layout)
            message = _read(wire.write_reply(reply), lengths=not self.codec.entropy)
            refused = None
        except Exception as error:  # whatever fails on a client, a code leaves it
            packet, update, message = b"", np.zeros(0, np.float32), {}
            refused = f"{type(error).__name__}: {error}"
        rows = Ledger(ledger, access="read").rows() if ledger.exists() else []
        shutil.rmtree(ledger.parent)
        return Answer(message, packet, update, tuple(row.spend for row in rows), tuple(seen), refused)

    @property
    def trained(self) -> np.ndarray:
        """bool (layout.size,): the values that training may change, and noise must cover."""
        names = {name for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        parts = [np.full(s.size, s.name in names) for s in self.trainer.layout.averaged]
        return np.concatenate(parts) if parts else np.zeros(0, bool)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for the ledgers of an audit, gone afterwards."""
    home = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fedq-audit-", dir=home) as folder:
        yield Path(folder)


def subject_of(experiment: Experiment, folder: Path) -> Subject:
    """The client that an experiment's config builds; AuditError where nothing private is claimed."""
    if experiment.plan is None:
        unit = experiment.config.privacy.unit
        if unit == "client":
            raise AuditError(
                "privacy=client: the noise is the server's, and what is audited is a client's: examples under "
                "privacy=example or both. `fedq privacy statement RUN` says what such a run rests on"
            )
        raise AuditError(f"privacy={unit}: no mechanism adds noise, so there is no claim to audit")
    identity = experiment.identities[0]

    def make_random() -> RandomSource:
        client = experiment.client(identity, folder=folder / "unused", run="audit")
        assert client.privacy is not None
        return client.privacy.random

    return Subject(
        experiment.plan,
        experiment.trainer,
        experiment.codec,
        experiment.initial,
        make_random,
        seed=experiment.config.seed,
        folder=folder,
    )


@dataclass(frozen=True)
class _Watched(Recipe):
    """A recipe whose optimizer tells what it is given before each step."""

    watch: Callable[[np.ndarray], None] = lambda gradient: None

    def make_optimizer(self, parameters: Any, round: int) -> torch.optim.Optimizer:
        optimizer = super().make_optimizer(parameters, round)
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: self.watch(_gradient(opt)))
        return optimizer


def _gradient(optimizer: torch.optim.Optimizer) -> np.ndarray:
    parts = [
        np.zeros(p.numel()) if p.grad is None else p.grad.detach().cpu().double().numpy().ravel()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return np.concatenate(parts)


def _read(content: Any, *, lengths: bool) -> dict[str, Any]:
    """What a server sees without decoding a packet; of a deflated one the length is a function of noised values."""
    seen: dict[str, Any] = {}
    for name, record in content.items():
        for key, value in record.items():
            if isinstance(value, bytes):
                header = packets.peek(value)
                value = header if lengths else replace(header, body_length=0)
            seen[f"{name}.{key}"] = value
    return seen
