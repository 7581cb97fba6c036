"""Whole clients protected by the server: what a reply may move, whatever it holds, and rounds that bring nothing."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from hand_made import CODEC, LAYOUT, START, forged, instead, make_strategy, run, update_of

from fedq.codec import Accumulator, Float32
from fedq.privacy import ClientLevelMechanism, ClientLevelPlan, Ledger, SecureRandom, SeededRandom
from fedq.server import Broadcast, CyclicSampler, Downlink, FlowerLoop, RoundAggregate
from fedq.server.sampling import SecretPoisson

PLAN = ClientLevelPlan(1.0, 0.5, cohort=4, clients=4, charges=2)
CLIENTS = ("0", "1", "2", "3")


class Silent(SeededRandom):
    """No noise: what is left is the sum."""

    def normal(self, shape):
        return np.zeros(shape)

    def discrete_gaussian(self, sigma, count):
        return np.zeros(count, np.int64)


@pytest.fixture
def protected(tmp_path):
    """A strategy that is protected, and its ledger."""
    made = []

    def make(plan=PLAN, *, random=None, codec=CODEC):
        strategy = make_strategy(codec, client_level=plan, min_clients=0)
        folder = tmp_path / str(len(made))
        made.append(strategy)
        noise = random or SeededRandom(5)
        ledger = Ledger(folder / "ledger")
        strategy.aggregation.protect(
            ClientLevelMechanism(
                plan, ledger=ledger.path, evidence=folder / "evidence", random=noise, data="drawn", run="run"
            )
        )
        return strategy, ledger

    return make


def moved(ran):
    """How far the model went, in float64."""
    return (ran.outcome.master.astype(np.float64) - START) * PLAN.cohort


def ran(protected, lies=None, *, rounds=1, plan=PLAN, random=None, **options):
    strategy, ledger = protected(plan, random=random or Silent(0))
    return run(lies, rounds=rounds, strategy=strategy, min_clients=0, **options), ledger


def test_changes_which_only_some_are_sent_do_not_go_with_whole_clients():
    with pytest.raises(ValueError, match=r"downlink\.kind=delta with client-level DP.*; use weights"):
        make_strategy(downlink=Downlink(Float32(), "delta"), client_level=PLAN, min_clients=0)


HUGE = {
    "a huge update": instead(update=np.full(LAYOUT.size, 1e30, np.float32)),
    "a huge weight": instead(num_examples=10**6),
    "huge biases": forged(72 + 4 * 5, np.float32(3e38).tobytes()),
}


@pytest.mark.parametrize("lie", HUGE.values(), ids=HUGE)
def test_a_hostile_client_moves_the_sum_by_no_more_than_the_clip(protected, lie):
    """Zero-out neighbours: client 2 lies, and client 2 is silent."""
    lied, _ = ran(protected, {"2": lie})
    silent, _ = ran(protected, deliver=lambda replies: [replies[i] for i in (0, 1, 3)])
    assert np.linalg.norm(moved(lied) - moved(silent)) <= 0.5 * (1 + 1e-5)  # the master is float32
    assert [len(round.accepted) for round in (lied.rounds[1], silent.rounds[1])] == [4, 3]


def test_the_exact_sums_of_neighbours_differ_by_no_more_than_the_clip(protected):
    """In integers: nothing is rounded after the clip that the bound does not cover."""
    strategy, _ = protected(codec=Float32())
    sums = []
    for clients in (CLIENTS, ("0", "1", "3")):
        total = RoundAggregate(LAYOUT)
        for name in clients:
            update = update_of(name, 1) * np.float32(1000 if name == "2" else 0.001)
            folded(strategy, total, update)
        sums.append(total.sums["update"].steps().astype(object))
    assert sum(int(d) ** 2 for d in sums[0] - sums[1]) <= (2**31) ** 2  # 0.5 in steps of 2^-32


def folded(strategy, total, update, clip_norm=0.5):
    from fedq.codec import encode

    packet = encode(update, strategy.codec, layout=LAYOUT, round=1, base=b"b" * 16)
    limits = {} if clip_norm is None else {"update": clip_norm}
    strategy.aggregation.add(total, "0", {"update": packet}, 7.0, round=1, base=b"b" * 16, limits=limits)


def test_short_updates_are_summed_as_they_came_and_divided_by_the_public_cohort(protected):
    strategy, _ = protected(random=Silent(0), codec=Float32())
    total, plain = RoundAggregate(LAYOUT), Accumulator(LAYOUT)
    for name in CLIENTS[:3]:
        update = update_of(name, 1) * np.float32(0.01)
        folded(strategy, total, update)
        plain.add_vector(update)
    step = strategy.aggregation.mean(total, "update", round=1)
    np.testing.assert_allclose(step, plain.mean().astype(np.float64) * 3 / 4, rtol=1e-6, atol=1e-9)


def test_a_reply_that_fails_a_check_counts_as_zero(protected):
    bad, _ = ran(protected, {"2": forged(72, np.float32(np.nan).tobytes())})
    silent, _ = ran(protected, deliver=lambda replies: [replies[i] for i in (0, 1, 3)])
    assert bad.model == silent.model
    assert bad.reasons(1) == [("2", "packet_scale")]


def test_a_round_without_any_reply_takes_its_noised_step_and_is_spent(protected):
    nothing, ledger = ran(protected, deliver=lambda replies: [], random=SecureRandom())
    assert [round.status for round in nothing.rounds] == ["initial", "ok"]
    assert 0.5 * 0.8 < moved(nothing).std() < 0.5 * 1.2  # z C = 0.5, 324 values: 4 % off at one sigma
    assert len(ledger.rows()) == 1


def test_every_round_is_spent_and_noised_anew(protected):
    twice, ledger = ran(protected, rounds=2, deliver=lambda replies: [], random=SecureRandom())
    assert [row.spend.round for row in ledger.rows()] == [1, 2]
    assert moved(twice).var() == pytest.approx(2 * 0.25, rel=0.4)


def test_what_clients_say_of_their_examples_ends_at_the_check(protected):
    told, _ = ran(protected)
    assert told.rounds[1].train_loss is None
    assert told.rounds[1].accepted == list(CLIENTS)


def test_examples_do_not_weigh(protected):
    one, _ = ran(protected, {"0": instead(num_examples=1), "1": instead(num_examples=1)})
    other, _ = ran(protected, {"0": instead(num_examples=10**5), "1": instead(num_examples=3)})
    assert one.model == other.model


def test_shares_of_a_cohort_merge_to_the_same_bits_with_their_counts(protected):
    strategy, _ = protected(codec=Float32())
    whole, shares = RoundAggregate(LAYOUT), [RoundAggregate(LAYOUT), RoundAggregate(LAYOUT)]
    for i, name in enumerate(CLIENTS):
        update = update_of(name, 1) * np.float32(0.01 if name == "3" else 1.0)
        folded(strategy, whole, update)
        folded(strategy, shares[i % 2], update)
    merged = RoundAggregate(LAYOUT)
    for share in shares:
        merged.merge(RoundAggregate.from_bytes(share.to_bytes(), LAYOUT))
    assert merged.to_bytes() == whole.to_bytes()
    assert (merged.clip_norm, merged.within) == (0.5, 1)


def test_shares_under_two_clips_are_not_one_sum(protected):
    strategy, _ = protected()
    one, other = RoundAggregate(LAYOUT), RoundAggregate(LAYOUT)
    folded(strategy, one, update_of("0", 1))
    folded(strategy, other, update_of("1", 1), clip_norm=0.25)
    with pytest.raises(RuntimeError, match=r"clipped to 0\.5 and to 0\.25"):
        one.merge(other)


def test_the_round_s_clip_reaches_workers_and_no_client(protected):
    strategy, _ = protected()
    broadcast = strategy.broadcast(START, 1, CLIENTS)
    assert Broadcast.from_frame(broadcast.head(), broadcast.blobs()).limits == {"update": 0.5}
    assert set(broadcast.packets("0")) == {"model"}


def test_without_the_mechanism_no_update_is_added_and_no_step_taken():
    strategy = make_strategy(client_level=PLAN)
    with pytest.raises(RuntimeError, match="no clip norm for this round"):
        folded(strategy, RoundAggregate(LAYOUT), update_of("0", 1), clip_norm=None)
    with pytest.raises(RuntimeError, match="no mechanism yet"):
        strategy.step(1, START, RoundAggregate(LAYOUT))


def test_a_mechanism_of_another_plan_is_refused(protected, tmp_path):
    strategy, _ = protected()
    other = replace(PLAN, noise_multiplier=0.5)
    weaker = ClientLevelMechanism(
        other, ledger=tmp_path / "l", evidence=tmp_path / "e", random=SecureRandom(), data="d", run="r"
    )
    with pytest.raises(ValueError, match=r"noise_multiplier=0\.5"):
        strategy.aggregation.protect(weaker)


def test_secret_cohorts_have_the_rate_they_claim_and_are_never_the_same_twice():
    names = [str(i) for i in range(200)]
    draws = SecretPoisson(names, rate=0.1, random=SecureRandom())
    sizes = [len(draws.cohort(round, 20)) for round in range(1, 501)]
    # 500 rounds of 200 clients: the mean size is off by sqrt(200 * 0.1 * 0.9 / 500) = 0.19 at one sigma.
    assert abs(np.mean(sizes) - 20) < 6 * 0.19
    assert np.var(sizes) == pytest.approx(18, rel=0.4)
    assert draws.source == "os"
    again = SecretPoisson(names, rate=0.1, random=SecureRandom())
    assert [draws.cohort(r, 20) for r in range(5)] != [again.cohort(r, 20) for r in range(5)]


def test_who_was_in_a_secret_cohort_is_in_order_of_names():
    draws = SecretPoisson(["10", "2", "1"], rate=0.999999, random=SeededRandom(0))
    assert draws.cohort(1, 3) == ["1", "2", "10"]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_leaves_nothing_to_chance_is_refused(rate):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        SecretPoisson(["a"], rate=rate, random=SecureRandom())


def test_a_round_that_asks_nobody_goes_on(protected):
    class Nobody(CyclicSampler):
        def cohort(self, round, size):
            return []

    asked_none, ledger = ran(protected, rounds=2, sampler=Nobody(CLIENTS, seed=0), random=SecureRandom())
    assert [round.status for round in asked_none.rounds] == ["initial", "ok", "ok"]
    assert len(ledger.rows()) == 2


@pytest.mark.hostile
def test_flower_s_own_loop_skips_no_round_of_whole_clients():
    """A round that is skipped where fewer than min_clients answer tells everybody how many did."""
    strategy = make_strategy(client_level=PLAN)
    with pytest.raises(
        ValueError, match=r"client_level with min_clients=1: a round that is skipped .*use min_clients=0"
    ):
        FlowerLoop(strategy).configure_train(1, ArrayRecord(), ConfigRecord(), grid=None)
