"""The rounds: sample, send, fold, step, evaluate, log. Knows the strategy; not how replies travel or what a model is.

The loop is ours, not Flower's `Strategy.start`, which waits for all replies, ends the run on a malformed
one, and can neither stop early nor leave a readable trace when it is interrupted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from fedq.privacy import Declined, LedgerError
from fedq.server.average import MovingAverage
from fedq.server.broadcast import Broadcast
from fedq.server.roster import LinkLostError
from fedq.server.round_aggregate import Rejected, RoundAggregate, Traffic
from fedq.server.sampling import Sampler
from fedq.server.strategy import Strategy

# Refusals that come before a client's ledger is written. `ledger` may come after: where its tip could not be written
# the row stands, and the code does not tell.
SPENT_NOTHING = frozenset({"budget", "policy"})
OUT_FOR_GOOD = SPENT_NOTHING | {"ledger"}  # no later round will go otherwise


class Gather(Protocol):
    """Carries one round to the clients and brings back the checked, folded total."""

    def __call__(self, round: int, broadcast: Broadcast, accepted: Mapping[str, int]) -> RoundAggregate: ...


@dataclass(frozen=True)
class Score:
    """A model on one set of examples."""

    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Scores:
    """A model on the evaluation set (the server's test set, or what clients hold out) and on the validation set."""

    evaluation: Score = Score()
    validation: Score = Score()
    traffic: Traffic = field(default_factory=Traffic)  # of asking the clients
    rejected: Sequence[Rejected] = ()  # who was asked to evaluate and could not
    error: float | None = None  # standard error that noise on counts gives the evaluation's metric


@dataclass(frozen=True)
class Rules:
    """How long the loop goes on, and what it keeps."""

    rounds: int
    cohort: int
    min_clients: int = 1
    due: Callable[[int], bool] = lambda round: True  # whether the model is evaluated after a round
    keep: str = "last"
    greater_is_better: bool = True
    ema: float | None = None  # decay of a moving average, which is evaluated and delivered in the last model's place


@dataclass(frozen=True)
class Round:
    """What one round did, as the log and the display get it."""

    number: int
    status: Literal["initial", "ok", "skipped"]
    scores: Scores
    train_loss: float | None
    participations: int  # largest number of rounds that any one client was asked in
    traffic: Traffic
    seconds: float
    accepted: Sequence[str] = ()
    rejected: Sequence[Rejected] = ()
    sparsity: float | None = None  # share of the prunable weights that are zero for good; None: a dense run
    asked: Sequence[str] = ()
    values: int = 0  # averaged values of an update
    clipped: Sequence[str] = ()  # clients whose update was shortened
    capped: Sequence[str] = ()  # clients whose claimed weight was too large


@dataclass
class Outcome:
    """The model at the end, and why it ended."""

    master: np.ndarray
    scores: Scores  # of that very model; empty where it was not evaluated
    rounds: int = 0  # rounds that ended, skipped ones too
    status: Literal["finished", "ended", "failed", "interrupted"] = "finished"
    reason: str = ""
    participations: dict[str, int] = field(default_factory=dict)


def run_rounds(
    *,
    strategy: Strategy,
    sampler: Sampler,
    master: np.ndarray,
    gather: Gather,
    score: Callable[[int, np.ndarray], Scores],
    watch: Callable[[Round], None],
    rules: Rules,
    hello: Traffic,
    refused: Sequence[Rejected] = (),
) -> Outcome:
    """Train for `rules.rounds` rounds from `master`, float32 of shape (layout.size,).

    `score` judges a flat model after a round; `watch` sees every round as it ends. After Ctrl-C the outcome
    holds the last whole round. Clients always train on from the last model, also where an average is delivered.
    """
    outcome = Outcome(master, Scores())
    best = _Best(rules)
    average = None if rules.ema is None else MovingAverage(rules.ema)
    out: set[str] = set()  # a client without budget has none in any later round
    begun = time.monotonic()
    try:
        scores = outcome.scores = score(0, master)
        hello.add(scores.traffic)
        lost, seconds = [*refused, *scores.rejected], time.monotonic() - begun
        watch(Round(0, "initial", scores, None, 0, hello, seconds, (), lost, strategy.sparsity))
        for number in range(1, rules.rounds + 1):
            begun = time.monotonic()
            cohort = sampler.cohort(number, rules.cohort)
            for client in cohort:
                outcome.participations[client] = outcome.participations.get(client, 0) + 1
            try:
                broadcast = strategy.broadcast(master, number, cohort)
            except ValueError as error:
                outcome.status, outcome.reason = "failed", f"round {number}: the model cannot be sent: {error}"
                break
            total = strategy.settle(gather(number, broadcast, strategy.last_accepted(cohort)), broadcast)
            strategy.note(number, cohort, [a.client for a in total.accepted])
            for refusal in total.rejected:
                if refusal.reason in SPENT_NOTHING:
                    outcome.participations[refusal.client] -= 1
            stepped = strategy.step(number, master, total) if len(total.accepted) >= rules.min_clients else None
            enough = stepped is not None and bool(np.isfinite(stepped).all())
            if stepped is not None and enough:
                master = stepped
                delivered = master if average is None else average.after(master, strategy.kept)
                scores = score(number, delivered) if rules.due(number) else Scores()
                total.traffic.add(scores.traffic)
                outcome.master, outcome.scores = best.offer(delivered, scores, settled=strategy.settled)
            outcome.rounds = number
            watch(
                Round(
                    number,
                    "ok" if enough else "skipped",
                    scores,  # a skipped round leaves the model, and so its scores, as they were
                    total.mean("loss"),
                    max(outcome.participations.values(), default=0),
                    total.traffic,
                    time.monotonic() - begun,
                    [a.client for a in total.accepted],
                    [*total.rejected, *(scores.rejected if enough else ())],
                    strategy.sparsity,
                    cohort,
                    total.layout.size,
                    total.clipped,
                    total.capped,
                )
            )
            if stepped is not None and not enough:
                outcome.status = "failed"
                outcome.reason = f"round {number}: the step is not finite; lower strategy.server_lr or train.lr"
                break
            out.update(r.client for r in total.rejected if r.reason in OUT_FOR_GOOD)
            # Not the cohort alone: one client, or one that lies, must not end the run of the others.
            if out.issuperset(sampler.clients):
                outcome.status = "ended"
                outcome.reason = f"round {number}: every client has spent its privacy budget, or cannot keep its ledger"
                break
    except Declined as declined:  # another run has spent from the server's ledger meanwhile
        outcome.status, outcome.reason = "ended", f"after round {outcome.rounds}: {declined}"
    except (LinkLostError, LedgerError) as error:
        outcome.status, outcome.reason = "failed", f"after round {outcome.rounds}: {error}"
    except (KeyboardInterrupt, SystemExit):  # Flower's own programs turn a signal into the latter
        outcome.status, outcome.reason = "interrupted", f"Ctrl-C or SIGTERM after round {outcome.rounds}"
    return outcome


class _Best:
    """The model to deliver: the last one, or the best on the validation set (never on the test set)."""

    def __init__(self, rules: Rules) -> None:
        self._sign = 1.0 if rules.greater_is_better else -1.0
        self._by_validation = rules.keep == "best"
        self._score = -np.inf
        self._kept: tuple[np.ndarray, Scores] | None = None

    def offer(self, master: np.ndarray, scores: Scores, *, settled: bool = True) -> tuple[np.ndarray, Scores]:
        """The model to keep so far, and its scores. One that is not yet settled gives way to whichever comes next."""
        metric = scores.validation.metric
        value = -np.inf if metric is None else self._sign * metric
        if self._kept is None or not self._by_validation or value > self._score:
            self._score, self._kept = value, (master, scores)
        kept = self._kept
        if not settled:  # denser than what was asked for
            self._kept = None
        return kept
