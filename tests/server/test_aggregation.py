"""Checked packets to a mean: held or summed at once, in one process or several, the bits are the same."""

import numpy as np
import pytest
from hand_made import CODEC, LAYOUT, START, instead, run, update_of

from fedq.codec import Float16, Float32, MalformedUpdate, encode
from fedq.server import Downlink
from fedq.server.aggregation import Averaging
from fedq.server.bounding import MedianPull, NormBound
from fedq.server.robust import Median, TrimmedMean
from fedq.server.round_aggregate import Accepted, RoundAggregate

BASE = b"b" * 16
CLIENTS = [str(i) for i in range(6)]
RULES = {
    "first round": {"bound": MedianPull},
    "known norm": {"bound": lambda: NormBound(0.5)},
    "median": {"aggregate": Median(), "bound": MedianPull},
    "trimmed mean, no bound": {"aggregate": TrimmedMean(0.2)},
}


def aggregation(rule):
    return Averaging(CODEC, bound=rule.get("bound"), aggregate=rule.get("aggregate"))


def packet_of(name, factor=1.0):
    return encode(np.float32(factor) * update_of(name, 1), CODEC, layout=LAYOUT, kind="delta", round=1, base=BASE)


def share(rule, clients, factors):
    total, made = RoundAggregate(LAYOUT), aggregation(rule)
    for name in clients:
        update = {"update": packet_of(name, factors.get(name, 1.0))}
        made.add(total, name, update, 10.0 + int(name), round=1, base=BASE, limits=made.limits())
        total.accepted.append(Accepted(name, 1.0))
    return total


def mean(rule, total):
    made = aggregation(rule)
    made.settle(total, made.limits())
    return made.mean(total, "update", round=1).tobytes(), total.clipped, sorted(total.reaches.get("update", []))


@pytest.mark.parametrize("name", RULES)
def test_shares_of_worker_processes_in_any_order_give_the_bits_of_one(name):
    rule, factors = RULES[name], {"2": 1000.0}
    whole = mean(rule, share(rule, CLIENTS, factors))
    for split in (CLIENTS[:1], CLIENTS[::-2], CLIENTS[3:]):
        merged, others = RoundAggregate(LAYOUT), [c for c in CLIENTS if c not in split]
        for part in (split, others):
            merged.merge(RoundAggregate.from_bytes(share(rule, part, factors).to_bytes(), LAYOUT))
        assert mean(rule, merged) == whole
    assert "2" in whole[1] or name == "trimmed mean, no bound"


def test_without_a_bound_the_packet_goes_straight_into_the_sums():
    total = share({}, CLIENTS, {})
    assert (total.held, total.reaches, total.sums["update"].count) == ([], {}, 6)


@pytest.mark.parametrize("name", RULES)
def test_a_packet_that_does_not_decode_changes_nothing(name):
    total, made = RoundAggregate(LAYOUT), aggregation(RULES[name])
    with pytest.raises(MalformedUpdate, match="base"):
        made.add(total, "1", {"update": packet_of("1")}, 1.0, round=1, base=b"c" * 16, limits=made.limits())
    assert total == RoundAggregate(LAYOUT)


def test_a_weight_that_the_sums_cannot_take_is_refused_before_the_update_is_held():
    total, made = RoundAggregate(LAYOUT), aggregation(RULES["first round"])
    with pytest.raises(MalformedUpdate, match="weight"):
        made.add(total, "1", {"update": packet_of("1")}, 1e-30, round=1, base=BASE, limits={})
    assert total.held == []


def test_an_update_that_the_sums_cannot_take_is_rejected_when_the_round_is_complete():
    """Only where most of the updates are so: the bound is theirs."""
    total = share(RULES["first round"], CLIENTS, dict.fromkeys(CLIENTS[1:], 1e6))
    made = aggregation(RULES["first round"])
    made.settle(total, {})
    assert [a.client for a in total.accepted] == ["0"]
    assert total.reasons == {"packet_overflow": 5}


def test_a_shortened_update_adds_what_the_limit_says():
    """By hand: lengths 1, 1 and 1000, weights 1; the third adds 2 of its 1000."""
    direction = update_of("0", 1) / np.linalg.norm(update_of("0", 1))
    total, made = RoundAggregate(LAYOUT), Averaging(Float32(), bound=MedianPull)
    for name, length in (("0", 1), ("1", 1), ("2", 1000)):
        packet = encode(np.float32(length * direction), "float32", layout=LAYOUT, kind="delta", round=1, base=BASE)
        made.add(total, name, {"update": packet}, 1.0, round=1, base=BASE, limits={})
    made.settle(total, {})
    np.testing.assert_allclose(made.mean(total, "update", round=1), direction * (1 + 1 + 2) / 3, rtol=1e-5, atol=1e-7)
    assert total.clipped == ["2"]


# --- whole rounds -----------------------------------------------------------------------------------------

FAR = {
    "longest update": instead(update=np.full(LAYOUT.size, 1e30, np.float32)),
    "largest weight": instead(num_examples=2**63 - 1),
    "both": instead(update=np.full(LAYOUT.size, 1e4, np.float32), num_examples=10**6),
}


@pytest.mark.hostile
@pytest.mark.parametrize("lie", FAR)
def test_one_of_five_moves_the_model_no_further_than_two_clients_could(lie):
    """Without a bound the first moved the model as far as it liked, and the second was as good as alone in the mean."""
    clients = ("0", "1", "2", "3", "4")
    hostile, honest = run({"2": FAR[lie]}, clients=clients, rounds=1, max_weight=15), run(clients=clients, rounds=1)
    step = np.linalg.norm(honest.outcome.master - hostile.outcome.master)
    longest = max(np.linalg.norm(update_of(name, 1)) for name in clients)
    assert step < 3 * longest / 5  # the honest fifth is gone, and two more have come
    assert "2" in [*hostile.rounds[1].clipped, *hostile.rounds[1].capped]


def test_each_row_names_who_was_shortened_and_whose_weight_was_capped():
    ran = run(
        {"2": instead(num_examples=10**9), "3": instead(update=np.ones(LAYOUT.size, np.float32) * 100)}, max_weight=20
    )
    assert (ran.rounds[1].clipped, ran.rounds[1].capped) == (["3"], ["2"])
    assert ran.reasons(1) == []


@pytest.mark.parametrize("options", [{}, {"aggregate": Median()}, {"aggregate": TrimmedMean(0.3), "bound": None}])
def test_the_order_of_replies_changes_no_bit(options):
    lies = {"2": instead(update=np.ones(LAYOUT.size, np.float32))}
    ordered = run(lies, **options)
    assert run(lies, deliver=lambda replies: reversed(replies), **options).model == ordered.model


@pytest.mark.hostile
@pytest.mark.parametrize("aggregate", [Median(), TrimmedMean(0.25)])
def test_under_a_robust_aggregate_no_coordinate_leaves_the_honest_range(aggregate):
    ran = run({"2": FAR["both"]}, rounds=1, aggregate=aggregate, bound=None)
    honest = np.stack([update_of(name, 1) for name in ("0", "1", "3")])
    moved, rounding = ran.outcome.master - START, 0.02  # rounding: of int8, both ways
    assert (moved >= honest.min(axis=0) - rounding).all()
    assert (moved <= honest.max(axis=0) + rounding).all()


@pytest.mark.hostile
def test_a_model_that_float16_cannot_hold_is_sent_in_float32_and_the_run_goes_on():
    """One client's long update ended the run of all clients."""
    huge = np.zeros(LAYOUT.size, np.float32)
    huge[0] = 1e6
    ran = run({"2": instead(update=huge)}, rounds=3, downlink=Downlink(Float16()), bound=None, weighting="equal")
    assert ran.outcome.status == "finished"
    assert np.abs(ran.outcome.master).max() > 65504
