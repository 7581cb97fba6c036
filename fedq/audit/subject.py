"""The subject of an audit: a client that answers requests, seen from outside. Knows clients and messages; no tests.

An auditor chooses the examples and the random source. The auditor sees the message, the ledger, and the input of the
optimizer in each step: at least as much as any adversary of the guarantee.
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

Prepare = Callable[[Examples], Examples]
# A folder in memory, if there is one: syncing the ledger would take most of an audit's time.
_IN_MEMORY = Path("/dev/shm")
_IDENTITY = "audited"


class AuditError(RuntimeError):
    """The audit could not be made; this says nothing about the mechanism."""


@dataclass(frozen=True)
class Answer:
    """All effects of one request. `refused`: why there is no reply; only the auditor sees it."""

    message: dict[str, Any]  # "record.key" -> value that a server reads; for a packet its header
    packet: bytes
    update: np.ndarray  # float32, as the server decodes it
    spends: tuple[Spend, ...]
    gradients: tuple[np.ndarray, ...]  # float64 (trained values,): the optimizer's input in each step
    refused: str | None = None


@dataclass(frozen=True)
class Subject:
    """A mechanism under audit: its public plan, and a way to get answers from it.

    `prepare`: the transformation of examples by the client's loader. `client`: makes the client. Both are fedq's own,
    unless a test replaces them.
    """

    plan: DPPlan
    trainer: Trainer
    codec: packets.Codec
    weights: np.ndarray  # float32, what the server sends
    make_random: Callable[[], RandomSource]
    prepare: Prepare = lambda examples: examples
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
        """The answer of a client that holds these examples; `random` replaces its own source.

        `weights`, float32 (layout.size,): the server's weights instead of the subject's own. `watch` is called with the
        optimizer's input in each step.
        """
        seen: list[np.ndarray] = []

        def step(gradient: np.ndarray) -> None:
            seen.append(gradient)
            watch(gradient)

        trainer = copy.copy(self.trainer)
        trainer.recipe = _Watched(**vars(self.trainer.recipe), watch=step)
        ledger = Path(tempfile.mkdtemp(dir=self.folder)) / "ledger.sqlite"
        # An audit makes many spends and nothing leaves, so the run's budget must not stop it.
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
        packet_sent = packets.encode(sent, "float32", layout=trainer.layout, kind="weights", round=round)
        try:
            reply = client.train(wire.Request(round, -1, {wire.MODEL: packet_sent}))
            packet = reply.packets.get(wire.UPDATE, b"")
            update = packets.decode(packet, trainer.layout)
            message = _read(wire.write_reply(reply), lengths=not self.codec.entropy)
            refused = None
        except Exception as error:  # for every failure, a code would leave the client
            packet, update, message = b"", np.zeros(0, np.float32), {}
            refused = f"{type(error).__name__}: {error}"
        rows = Ledger(ledger, access="read").rows() if ledger.exists() else []
        shutil.rmtree(ledger.parent)
        return Answer(message, packet, update, tuple(row.spend for row in rows), tuple(seen), refused)

    @property
    def trained(self) -> np.ndarray:
        """The values that training may change and noise must cover, bool (layout.size,)."""
        names = {name for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        parts = [np.full(s.size, s.name in names) for s in self.trainer.layout.averaged]
        return np.concatenate(parts) if parts else np.zeros(0, bool)


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder for the ledgers of an audit."""
    home = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fedq-audit-", dir=home) as folder:
        yield Path(folder)


def subject_of(experiment: Experiment, folder: Path) -> Subject:
    """The client of an experiment as a subject; AuditError if its examples are not protected."""
    if experiment.plan is None:
        unit = experiment.config.privacy.unit
        if unit == "client":
            raise AuditError(
                "privacy=client: the noise is the server's, and what is audited is a client's: examples under "
                "privacy=example or both. `fedq privacy statement RUN` shows the assumptions of such a run"
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
    """A recipe whose optimizer reports its input before each step."""

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
    """The values that a server sees without decoding packets; a deflated packet's length depends on noised values."""
    seen: dict[str, Any] = {}
    for name, record in content.items():
        for key, value in record.items():
            if isinstance(value, bytes):
                header = packets.peek(value)
                value = header if lengths else replace(header, body_length=0)
            seen[f"{name}.{key}"] = value
    return seen
