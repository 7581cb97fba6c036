"""The two apps: a Flower `ClientApp` over clients, and the server's whole job. Knows experiments; not how they are run.

The client's outermost layer is here: whatever goes wrong inside, a code leaves and the text stays, since Flower
sends the type and text of an uncaught exception, paths and data values included, to the server.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedq import __version__, codec, wire
from fedq.client import Client
from fedq.config import rules
from fedq.delivery import Delivery
from fedq.experiment import Experiment
from fedq.results import Result, RoundRow
from fedq.server import Dealer, Roster, Rules, Total, run_rounds
from fedq.server.loop import Score, Scores
from fedq.server.strategy import QuantizedFedAvg
from fedq.server.total import Rejected, Traffic


def client_app(client_of: Callable[[Context], Client]) -> ClientApp:
    """A Flower app that answers for the client that `client_of` names; the same on every runtime."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        try:
            client = client_of(context)
            told = wire.Hello(client.identity, __version__, codec.FORMATS, client.trainer.layout.digest)
            return Message(wire.write_hello(told), reply_to=message)
        except (Exception, SystemExit):
            return Message(wire.write_refusal(wire.Refusal(0, "client_error")), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(message, context, client_of, lambda client, request: client.train(request))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _guarded(message, context, client_of, lambda client, request: client.evaluate(request))

    return app


def _guarded(
    message: Message,
    context: Context,
    client_of: Callable[[Context], Client],
    work: Callable[[Client, wire.Request], wire.Reply],
) -> Message:
    """The reply, or a refusal that holds a code and nothing else, whatever fails and wherever."""
    from fedq.privacy import Declined, LedgerError

    client: Client | None = None
    round, reason, told = -1, "client_error", ""
    try:
        client = client_of(context)
        request = wire.read_request(message.content)
        round = request.round
        return Message(wire.write_reply(work(client, request)), reply_to=message)
    except Declined as error:
        reason, told = error.reason, str(error)
    except LedgerError as error:
        reason, told = "ledger", str(error)
    except (wire.MalformedReply, codec.MalformedUpdate):
        reason, told = "bad_request", traceback.format_exc()
    except (Exception, SystemExit):  # a user's code may end the process; Ctrl-C still does
        told = traceback.format_exc()
        if client is not None and client.privacy is not None:
            reason = "declined"  # whether this data makes the code fail is private too, as far as a code can hide it
    with suppress(OSError):  # a full disk must not turn the log's own error into a message
        if client is not None:
            client.state.log(f"round={round} refused: {reason}\n{told}")
    return Message(wire.write_refusal(wire.Refusal(round, reason)), reply_to=message)


class Link(Protocol):
    """How the server reaches its clients: in this process, over worker processes, or over a network."""

    def meet(self) -> tuple[Roster, Traffic]: ...

    def close(self) -> None: ...

    def gather(
        self,
        round: int,
        broadcast: Mapping[str, bytes],
        accepted: Mapping[str, int],
        *,
        task: str = wire.TRAIN,
    ) -> Total: ...


class TooFewClientsError(RuntimeError):
    """The run cannot begin: fewer clients answered than a round needs."""


def serve(
    experiment: Experiment,
    strategy: QuantizedFedAvg,
    link: Link,
    *,
    folder: Path,
    watch: Callable[[RoundRow], None],
) -> Result:
    """The server's whole job: meet the clients, run the rounds, deliver and measure the int8 model, fill the folder."""
    config, begun = experiment.config, time.monotonic()
    roster, hello = link.meet()
    roster.keep(experiment.identities)
    present = len(roster.nodes)
    cohort = rules.cohort_size(config, clients=present)
    if experiment.plan is not None:  # never a larger share than the one for whose cap the noise was calibrated
        cohort = rules.cohort_size(config) * present // config.clients
    if present < config.strategy.min_clients or cohort < 1:
        refused = ", ".join(f"{r.client}: {r.reason}" for r in roster.refused[:5]) or "no answer"
        raise TooFewClientsError(f"{present} of {config.clients} clients answered, too few for a round ({refused})")
    judge = _Judge(experiment, strategy, link, roster)
    with Delivery(experiment, folder, watch) as delivery:
        outcome = run_rounds(
            strategy=strategy,
            dealer=Dealer(list(roster.nodes), seed=config.seed),
            master=experiment.initial,
            gather=link.gather,
            score=judge,
            watch=delivery.round,
            rules=Rules(
                rounds=config.rounds,
                cohort=cohort,
                min_clients=config.strategy.min_clients,
                due=lambda round: rules.evaluation_due(config, round),
                keep=config.strategy.keep,
                greater_is_better=experiment.trainer.metric.greater_is_better,
            ),
            hello=hello,
            refused=roster.refused,
        )
        link.close()  # nobody trains, or spends, any more: the evidence is complete
        return delivery.close(outcome, begun=begun)


class _Judge:
    """Scores a flat model: on the server's test set, or else by asking the clients, never under DP."""

    def __init__(self, experiment: Experiment, strategy: QuantizedFedAvg, link: Link, roster: Roster) -> None:
        self._experiment, self._strategy, self._link, self._roster = experiment, strategy, link, roster

    def __call__(self, round: int, master: np.ndarray) -> Scores:
        data, trainer = self._experiment.dataset, self._experiment.trainer
        evaluation, validation, traffic = Score(), Score(), Traffic()
        rejected: list[Rejected] = []
        if data.test is not None:
            on_test = trainer.evaluate(master, data.test)
            evaluation = Score(on_test.loss, on_test.metric)
        elif self._experiment.accuracy_source == "clients":
            try:
                broadcast = self._strategy.broadcast(master, round)
            except ValueError:  # float16 cannot hold this model: the next round says so
                return Scores()
            total = self._link.gather(round, broadcast, dict.fromkeys(self._roster.nodes, -1), task=wire.EVALUATE)
            evaluation, traffic = Score(total.mean("loss"), total.mean("metric")), total.traffic
            rejected = total.rejected
        if data.validation is not None:
            on_validation = trainer.evaluate(master, data.validation)
            validation = Score(on_validation.loss, on_validation.metric)
        return Scores(evaluation, validation, traffic, rejected)
