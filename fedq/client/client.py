"""One client's part of a round, in the order that is the guarantee. Knows wire, codec and training; not Flower."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedq import codec as packets
from fedq.algorithms import Algorithm, FedAvg, State
from fedq.client.state import ClientState, note_declined
from fedq.client.task import LocalTask
from fedq.core.randomness import generator
from fedq.data import Examples
from fedq.data.split import held_out_by_content, trained_on
from fedq.flower import wire
from fedq.privacy import DPPlan, Ledger, RandomSource, SpendContext, admit, budget_guard, is_begun, noisy_counts
from fedq.training import PrivateFit, Trainer


@dataclass(frozen=True)
class Privacy:
    """The client's side of DP: its plan, its ledger and its own source of noise."""

    plan: DPPlan
    ledger: Path
    random: RandomSource
    data_name: str
    run: str
    bundle: str = ""  # digest of the app's own files, for the ledger
    tip: Path | None = None  # where the ledger's tip is kept; None: beside it
    holdout: float = 0.0  # share of the examples that is never trained on

    def context(self, round: int) -> SpendContext:
        """What a spend of that round is for."""
        return SpendContext(data=self.data_name, run=self.run, round=round, bundle=self.bundle)


def accept_round(round: int) -> None:
    """For clients whose owner does not count the rounds that are asked of them."""


def check_account(privacy: Privacy | None) -> None:
    """Declined or LedgerError where a client cannot take part in even one round; said before the first."""
    if privacy is None:
        return
    if is_begun(privacy.ledger, tip=privacy.tip):
        admit(Ledger(privacy.ledger, tip=privacy.tip), privacy.plan, data=privacy.data_name)
    else:
        budget_guard(privacy.plan)([])


def check_holdout(request: wire.Request, privacy: Privacy) -> None:
    """MalformedReply unless as much is held out as this client's own public configuration says, in every round."""
    if request.holdout != privacy.holdout:
        text = f"the request holds out {request.holdout:g} of the examples, this client {privacy.holdout:g}"
        raise wire.MalformedReply("holdout", text)


@dataclass
class Client:
    """A client with its data at hand. `shard` gives all its examples, after the request was admitted."""

    identity: str
    trainer: Trainer
    codec: Any
    shard: Callable[[], Examples]
    state: ClientState
    seed: int
    keeps_weights: bool = False  # what it was sent last, since the server sends changes
    privacy: Privacy | None = None
    algorithm: Algorithm = field(default_factory=FedAvg)
    # May decline a round before anything of it is done.
    on_training: Callable[[int], None] = field(default_factory=lambda: accept_round, init=False, repr=False)
    _held: np.ndarray | None = field(default=None, init=False, repr=False)

    @property
    def layout_digest(self) -> bytes:
        """Of the model that this client trains."""
        return self.trainer.layout.digest

    @property
    def private(self) -> bool:
        """Whether it tells nothing of why its code failed."""
        return self.privacy is not None

    def train(self, request: wire.Request, *, paid: int | None = None) -> wire.Reply:
        """The update for one request. Raises `Declined` or `MalformedUpdate` before any data is opened.

        `paid`: the row of the ledger that pays for it, if the code that opened the data wrote it already.
        """
        if paid is None:  # else it was asked before the spend
            self.on_training(request.round)
        with self.state.exclusive():
            if request.round < self.state.round:  # delivered again, late: its residual would replace a newer one
                raise wire.MalformedReply("round", f"round {request.round} after round {self.state.round}")
            kept, weights = self._received(request)
            base = packets.digest(kept.gather(weights))
            received = self._beside(request, kept, base)
            private = self._admit(request, paid)
            trained_on, _ = self._parts(request.holdout)
            before = self.state.residual(request.accepted) if self.codec.error_feedback else None
            task = LocalTask(
                trainer=self.trainer,
                codec=self.codec,
                weights=weights,
                received=received,
                examples=trained_on,
                masked=kept,
                base=base,
                round=request.round,
                seed=self.seed,
                identity=self.identity,
                private=private,
                residual=before,
            )
            state = self.state.algorithm(request.accepted) or self.algorithm.client_state(weights.size)
            # Under DP `fit` writes the spend and adds the noise; all that follows is post-processing.
            new_state = self.algorithm.client_update(task, state)
            fitted = task.fitted
            if fitted is None or set(task.sent) != {packet.name for packet in self.algorithm.uplink}:
                raise RuntimeError("the algorithm's client_update must call fit, and send every packet of its uplink")
            if self.codec.error_feedback or self.keeps_weights or new_state:
                weights_sent = weights if self.keeps_weights else None
                self.state.commit(request.round, before, task.lost, weights_sent, algorithm=(state, new_state))
            packet_bytes = sum(map(len, task.sent.values()))
            self.state.log(_line(request.round, fitted.num_examples, fitted.loss, packet_bytes))
            if fitted.evidence is not None:
                self.state.note_evidence(request.round, fitted.evidence)
                return wire.Reply(request.round, task.sent)
            return wire.Reply(request.round, task.sent, fitted.num_examples, fitted.loss)

    def check_account(self) -> None:
        """Declined or LedgerError where this client cannot take part in even one round; said before the first."""
        check_account(self.privacy)

    def note_declined(self, why: str) -> None:
        """For the owner, where refusals of all runs are noted; in simulation for the run's, beside its evidence."""
        run = "" if self.privacy is None else self.privacy.run
        folder, name = self.state.owner or (self.state.folder, run)
        if folder is not None:
            note_declined(folder, name, why)

    def evaluate(self, request: wire.Request, *, paid: int | None = None) -> wire.Reply:
        """Loss and metric of the sent model on the examples that this client holds out; under DP two noisy counts."""
        if self.privacy is not None:
            with self.state.exclusive():
                return self._count(request, self.privacy, paid)
        _, weights = self._received(request)
        _, held_out = self._parts(request.holdout)
        result = self.trainer.evaluate(weights, held_out)
        self.state.log(f"round={request.round} evaluated={len(held_out)} loss={result.loss} metric={result.metric}")
        return wire.Reply(request.round, {}, result.num_examples, result.loss, result.metric)

    def _count(self, request: wire.Request, privacy: Privacy, paid: int | None) -> wire.Reply:
        """How many answers are right and wrong, with noise: all that leaves, once it is paid for."""
        if privacy.plan.evaluation_epsilon is None:
            raise PermissionError("an evaluation is not covered by this client's privacy plan")
        _, weights = self._received(request)
        check_holdout(request, privacy)
        ledger = self._ledger()
        if paid is None:
            admit(ledger, privacy.plan, data=privacy.data_name, counts=True)
        _, held_out = self._parts(request.holdout)
        right, wrong, evidence = noisy_counts(
            *self.trainer.count_right(weights, held_out),
            privacy.plan,
            random=privacy.random,
            ledger=ledger,
            context=privacy.context(request.round),
            paid=paid,
        )
        self.state.note_evidence(request.round, evidence)
        self.state.log(f"round={request.round} evaluated={len(held_out)} noisy_right={right} noisy_wrong={wrong}")
        return wire.Reply(request.round, counts=(right, wrong))

    def _received(self, request: wire.Request) -> tuple[packets.MaskedLayout, np.ndarray]:
        """Which weights are kept, and all weights: as they came, or what this client holds and the changes since."""
        layout = self.trainer.layout
        model = {name: data for name, data in request.packets.items() if name not in self.algorithm.downlink}
        told = wire.model_of(model)
        kept = packets.MaskedLayout.from_packet(wire.mask_of(request.packets), layout, round=request.round)
        if isinstance(told, bytes):
            values = packets.decode(told, kept.layout, round=request.round, kind="weights")
            return kept, kept.scatter(values)
        weights = self.state.weights
        if weights is None or weights.size != layout.size:
            raise packets.MalformedUpdate("base", "changes, and this client holds no weights that they are against")
        if request.round == self.state.round and packets.peek(told[-1]).round == request.round:
            return kept, weights  # delivered again: what it holds has these changes in it
        for number, delta in enumerate(told, start=1):
            round = request.round if number == len(told) else None
            base = packets.digest(weights)
            weights = weights + packets.decode(delta, layout, round=round, base=base, kind="delta")
        return kept, weights

    def _beside(self, request: wire.Request, kept: packets.MaskedLayout, base: bytes) -> State:
        """What the algorithm's server sent beside the model, decoded; MalformedUpdate where it is not all there."""
        if not set(self.algorithm.downlink) <= set(request.packets):
            raise wire.MalformedReply("missing_key", f"a request brings {', '.join(self.algorithm.downlink)} too")
        return {
            name: kept.scatter(packets.decode(request.packets[name], kept.layout, round=request.round, base=base))
            for name in self.algorithm.downlink
        }

    def _parts(self, holdout: float) -> tuple[Examples, Examples]:
        """The examples to train on and those to evaluate on: the same cut in every round of a run."""
        examples = self.shard()
        if self.privacy is not None:
            if not holdout:
                return examples, examples[[]]
            if self._held is None:  # hashing all examples takes as long as a few steps
                self._held = held_out_by_content(examples.inputs, examples.targets, holdout)
            return examples[np.setdiff1d(np.arange(len(examples)), self._held)], examples[self._held]
        held = len(examples) - trained_on(len(examples), holdout)
        if held < 1:
            return examples, examples[[]]
        order = generator(self.seed, "held out", self.identity).permutation(len(examples))
        return examples[np.sort(order[held:])], examples[np.sort(order[:held])]

    def _admit(self, request: wire.Request, paid: int | None) -> PrivateFit | None:
        if self.privacy is None:
            return None
        check_holdout(request, self.privacy)
        ledger = self._ledger()
        if paid is None:
            admit(ledger, self.privacy.plan, data=self.privacy.data_name)
        return PrivateFit(self.privacy.plan, self.privacy.random, ledger, self.privacy.context(request.round), paid)

    def _ledger(self) -> Ledger:
        assert self.privacy is not None
        return Ledger(self.privacy.ledger, tip=self.privacy.tip)


def _line(round: int, examples: int, loss: float | None, packet_bytes: int) -> str:
    told = "" if loss is None else f" loss={loss:.4f}"
    return f"round={round} examples={examples}{told} packet_bytes={packet_bytes}"
