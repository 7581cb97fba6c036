"""Forecast the cost of a run before it starts: all messages are rehearsed with updates of noise. Trains nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedq import __version__, codec
from fedq.artifacts.run_artifacts import epsilon_after, spent_before
from fedq.config import public
from fedq.data.split import held_out
from fedq.experiment import Experiment
from fedq.experiment.ledgers import ledger_file, server_ledger_file
from fedq.flower import wire
from fedq.flower.grid import InProcessGrid
from fedq.privacy import MAX_BATCH
from fedq.results import ClientLevelForecast, Forecast
from fedq.server import CyclicSampler, Roster
from fedq.server.link import counted
from fedq.server.meter import Meter
from fedq.server.roster import Exchange, grid_exchange
from fedq.server.round_aggregate import Traffic

_MESSAGES = 20_000  # most rehearsed messages (some seconds); the rest of a longer run is extrapolated


def forecast(experiment: Experiment) -> Forecast:
    """Rehearse every message of the run with updates of noise, and count bytes, rounds and epsilon."""
    config, plan, participations = experiment.config, experiment.plan, _participations(experiment)
    traffic = _rehearse(experiment)
    return Forecast(
        name=config.name,
        rounds=config.rounds,
        cohort=public.cohort_size(config),
        clients=config.clients,
        parameters=experiment.layout.size,
        bytes_up=traffic.up,
        bytes_down=traffic.down,
        float32_bytes_up=traffic.float32_up,
        float32_bytes_down=traffic.float32_down,
        participations=participations,
        epsilon=epsilon_after(experiment, participations, counted=experiment.accuracy_source == "noisy_counts"),
        delta=None if plan is None else plan.delta,
        noise_multiplier=None if plan is None else plan.noise_multiplier,
        steps=None if plan is None else plan.steps,
        sample_rate=None if plan is None else plan.sample_rate,
        memory_bytes=_memory(experiment),
        client_level=_client_level(experiment),
    )


@dataclass(frozen=True)
class SpentBudget:
    """The spends in the ledgers of privacy.ledger before the run, and the clients that will decline it."""

    epsilon: float  # spend of the client that has spent most
    after: float  # its spend after the run, even above its budget
    target: float
    lacking: dict[str, str]  # client -> why it takes part in no further round: budget or ledger


def held(experiment: Experiment) -> SpentBudget | None:
    """Read the clients' ledgers; None without privacy.ledger, or if no ledger exists yet."""
    plan = experiment.plan
    if plan is None or experiment.config.privacy.ledger is None:
        return None
    from fedq.privacy import Declined, Ledger, LedgerError, admit, is_begun

    files = {name: ledger_file(experiment.config, Path(), name) for name in experiment.identities}
    begun = {name: path for name, path in files.items() if is_begun(path)}
    if not begun:
        return None
    lacking: dict[str, str] = {}
    for name, path in begun.items():  # the check that the client makes in its handshake
        try:
            admit(Ledger(path, access="read"), experiment.plans[name], data=experiment.data_name)
        except Declined as declined:
            lacking[name] = declined.reason
        except LedgerError:
            lacking[name] = "ledger"
    before = spent_before(experiment)
    counted = experiment.accuracy_source == "noisy_counts"
    after = epsilon_after(experiment, _participations(experiment), before=before, counted=counted)
    return SpentBudget(epsilon_after(experiment, 0, before=before) or 0.0, after or 0.0, plan.target_epsilon, lacking)


def held_by_server(experiment: Experiment) -> SpentBudget | None:
    """The same for client-level DP, from the server's ledger. A run that does not fit is refused as a whole."""
    plan, config = experiment.client_plan, experiment.config
    if plan is None or config.privacy.ledger is None:
        return None
    from fedq.privacy import Ledger, LedgerError, charged, epsilon, is_begun

    path = server_ledger_file(config, Path())
    if not is_begun(path):
        return None
    try:
        spends = [row.spend for row in Ledger(path, access="read").rows()]
    except LedgerError:
        return SpentBudget(math.inf, math.inf, plan.target_epsilon, {})
    before = charged(spends, clients=plan.clients)
    spent = epsilon(before, plan.delta, accountant=plan.accountant)
    return SpentBudget(spent, plan.epsilon(plan.charges, before=before), plan.target_epsilon, {})


def _participations(experiment: Experiment) -> int:
    """The most rounds in which any client is asked."""
    secret = experiment.client_plan is not None and experiment.client_plan.sampling == "poisson"
    return experiment.config.rounds if secret else public.participation_cap(experiment.config)


def _client_level(experiment: Experiment) -> ClientLevelForecast | None:
    plan = experiment.client_plan
    if plan is None:
        return None
    noise_norm = plan.sum_multiplier / plan.cohort * math.sqrt(experiment.layout.size)
    return ClientLevelForecast(
        plan.epsilon(plan.charges), plan.delta, plan.noise_multiplier, plan.charges, plan.sample_rate, noise_norm
    )


def _rehearse(experiment: Experiment) -> Traffic:
    config, strategy = experiment.config, experiment.strategy()
    meter = Meter(experiment.layout)
    updates = [_packets(experiment, experiment.layout)]  # the last one is what the clients send
    grid = InProcessGrid(_silent_clients(experiment, updates), config.clients)
    exchange = counted(grid_exchange(grid), meter)
    roster = Roster(dict(zip(experiment.identities, grid.contexts, strict=True)))
    _send(exchange, [Message(wire.empty(), dst_node_id=node, message_type=wire.HELLO) for node in grid.contexts])
    sampler, last = CyclicSampler(experiment.identities, seed=config.seed), dict.fromkeys(experiment.identities, -1)
    rehearsed = min(config.rounds, max(1, _MESSAGES // public.cohort_size(config)))
    hello = meter.take()
    snapshot = strategy.snapshot(experiment.initial, 1)  # the same length in every round, until weights are pruned
    for round in range(rehearsed + 1):
        if round:
            cohort = sampler.cohort(round, public.cohort_size(config))
            stands_alone = strategy.downlink.kind == "weights"
            alike = stands_alone and not experiment.algorithm.downlink
            broadcast = snapshot if alike else strategy.broadcast(experiment.initial, round, cohort)
            _send(exchange, strategy.messages(round, broadcast, {c: last[c] for c in cohort}, roster))
            strategy.note(round, cohort, cohort)
            last.update(dict.fromkeys(cohort, round))
            if not strategy.settled:  # the number of pruned weights is known, not which ones
                strategy.prune(round, experiment.initial)
                snapshot = strategy.snapshot(experiment.initial, round)
                updates.append(_packets(experiment, strategy.kept.layout))
        if experiment.counts_after(round) or (
            experiment.accuracy_source == "clients" and public.evaluation_due(config, round)
        ):
            everyone = dict.fromkeys(experiment.identities, -1)
            _send(exchange, strategy.messages(round, snapshot, everyone, roster, task=wire.EVALUATE))
    sent = meter.take()
    if rehearsed < config.rounds:  # a message of a later round is at most a byte longer
        share = config.rounds / rehearsed
        up, down, plain_up, plain_down = (
            int(share * n) for n in (sent.up, sent.down, sent.float32_up, sent.float32_down)
        )
        sent = Traffic(up, down, plain_up, plain_down)
    sent.add(hello)
    return sent


def _send(exchange: Exchange, messages: list[Message]) -> None:
    for _ in exchange(messages, math.inf):
        pass


def _packets(experiment: Experiment, layout: codec.Layout) -> dict[str, bytes]:
    """The packets of a client in a round: noise, with the length of real packets."""
    noise = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    codecs = {packet.name: codec.packet_codec(packet.name, experiment.codec) for packet in experiment.algorithm.uplink}
    return {name: codec.encode(noise, used, layout=layout) for name, used in codecs.items()}


def _silent_clients(experiment: Experiment, updates: Sequence[Mapping[str, bytes]]) -> ClientApp:
    """Clients whose replies have the size of real ones (with codec.entropy about this size) and no content."""
    app = ClientApp()
    private = experiment.plan is not None
    sizes, names = dict(_shard_sizes(experiment)), experiment.identities

    def name_of(context: Context) -> str:
        return names[int(context.node_config["partition-id"])]

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        content = wire.Hello(name_of(context), __version__, codec.FORMATS, experiment.layout.digest)
        return Message(wire.write_hello(content), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        round, size = wire.read_request(message.content).round, sizes[name_of(context)][0]
        update = updates[-1]
        reply = wire.Reply(round, update) if private else wire.Reply(round, update, size, 0.0)
        return Message(wire.write_reply(reply), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        round, size = wire.read_request(message.content).round, sizes[name_of(context)][1]
        counts = wire.Reply(round, counts=(size, size))
        reply = counts if private else wire.Reply(round, {}, size, 0.0, 0.0)
        return Message(wire.write_reply(reply), reply_to=message)

    return app


def _shard_sizes(experiment: Experiment) -> Iterator[tuple[str, tuple[int, int]]]:
    """Identity -> (number of training examples, number of held-out examples)."""
    for identity, shard in experiment.shards.items():
        held = min(len(shard) - 1, held_out(len(shard), experiment.holdout))
        yield identity, (len(shard) - held, held)


def _memory(experiment: Experiment) -> int:
    """Bytes of the data and its cached frozen features, of the vectors that a process holds at once, and under DP of
    the per-example gradients of a batch.
    """
    data = experiment.dataset
    splits = [s for s in (data.train, data.validation, data.test) if s is not None]
    arrays = sum(s.inputs.nbytes + s.targets.nbytes for s in splits)
    arrays += experiment.trainer.kept_bytes(sum(map(len, splits)))
    vector = 4 * experiment.layout.size
    # master, broadcast, base, local weights, update (float32), accumulator (int64), optimizer state at both ends
    vectors = 5 * vector + 2 * vector + 4 * vector
    private = MAX_BATCH * vector if experiment.plan is not None else 0  # per-example gradients held at once
    return arrays + vectors + private
