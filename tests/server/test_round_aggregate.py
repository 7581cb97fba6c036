"""What a round brought: pre-summed shares are, to the byte, one sum; and it travels."""

import numpy as np
import pytest
from hand_made import LAYOUT, update_of

from fedq.codec import Accumulator, Layout, MalformedUpdate, encode
from fedq.server.round_aggregate import Accepted, Rejected, RoundAggregate, Traffic

CLIENTS = [str(i) for i in range(7)]


def share(clients, *, refused=()):
    """The total of some clients' updates, as one worker makes it: in their order."""
    total = RoundAggregate(LAYOUT)
    for name in clients:
        update = encode(update_of(name, 1), "int8", layout=LAYOUT)
        total.sums.setdefault("update", Accumulator(LAYOUT)).add(update, 10 + int(name))
        total.accepted.append(Accepted(name, 10.0 + int(name), 0.1 * int(name)))
    total.rejected += [Rejected(name, "no_reply") for name in refused]
    total.traffic = Traffic(100 * len(clients), 10 * len(clients), 400, 40, ["fedq.reply.round"])
    return total


def merged(*shares):
    total = RoundAggregate(LAYOUT)
    for one in shares:
        total.merge(one)
    return total


def content(total):
    return total.sums["update"].to_bytes(), total.accepted, total.rejected, total.mean("loss")


@pytest.mark.parametrize("cut", range(len(CLIENTS) + 1))
def test_merged_shares_equal_one_total(cut):
    assert content(merged(share(CLIENTS[:cut]), share(CLIENTS[cut:]))) == content(share(CLIENTS))


def test_the_order_of_the_shares_does_not_matter():
    one, two, three = share(CLIENTS[::3]), share(CLIENTS[1::3], refused="98"), share(CLIENTS[2::3], refused="7")
    assert merged(one, two, three).to_bytes() == merged(three, one, two).to_bytes()


def test_merged_bytes_add_up():
    traffic = merged(share("01"), share("2")).traffic
    assert (traffic.up, traffic.down, traffic.float32_up, traffic.float32_down) == (300, 30, 800, 80)
    assert traffic.fields == ["fedq.reply.round"]


def test_merging_leaves_the_shares_as_they_were():
    one, two = share("01"), share("23")
    before = one.to_bytes(), two.to_bytes()
    merged(one, two)
    assert (one.to_bytes(), two.to_bytes()) == before


def test_a_total_of_another_model_is_not_merged():
    other = RoundAggregate(Layout.flat(3), {"update": Accumulator(Layout.flat(3))})
    with pytest.raises(ValueError, match="accumulators of two layouts cannot be merged"):
        share("01").merge(other)


@pytest.mark.parametrize("clients", ["", "0", "0123456"])
def test_a_total_comes_back_from_its_bytes(clients):
    total = share(clients, refused="8")
    back = RoundAggregate.from_bytes(total.to_bytes(), LAYOUT)
    assert back.to_bytes() == total.to_bytes()
    assert (back.accepted, back.rejected, back.traffic) == (total.accepted, total.rejected, total.traffic)


def test_a_total_under_dp_comes_back_without_what_clients_keep():
    total = RoundAggregate(LAYOUT, accepted=[Accepted("3", 1.0)])
    assert RoundAggregate.from_bytes(total.to_bytes(), LAYOUT).accepted == [Accepted("3", 1.0)]


def test_sums_of_another_model_are_not_read():
    with pytest.raises(MalformedUpdate, match=r"^(length|trailing|layout): "):
        RoundAggregate.from_bytes(share("01").to_bytes(), Layout.flat(3))


def test_loss_is_the_mean_with_the_weights_of_the_updates():
    total = RoundAggregate(LAYOUT, accepted=[Accepted("0", 30.0, 1.0), Accepted("1", 10.0, 3.0)])
    assert total.mean("loss") == (30 * 1.0 + 10 * 3.0) / 40


def test_there_is_no_loss_where_clients_keep_it():
    assert RoundAggregate(LAYOUT, accepted=[Accepted("0", 1.0)]).mean("loss") is None
    assert RoundAggregate(LAYOUT).mean("loss") is None


def test_reasons_are_counted():
    total = RoundAggregate(LAYOUT, rejected=[Rejected("1", "weight"), Rejected("2", "error"), Rejected("3", "weight")])
    assert total.reasons == {"error": 1, "weight": 2}


def test_mean_of_the_merged_sum_is_the_weighted_mean():
    weights = np.array([10 + int(name) for name in CLIENTS])
    updates = np.stack([update_of(name, 1) for name in CLIENTS]).astype(np.float64)
    total = RoundAggregate(LAYOUT)
    for name in CLIENTS:
        packet = encode(update_of(name, 1), "float32", layout=LAYOUT)
        one = RoundAggregate(LAYOUT, {"update": Accumulator(LAYOUT)})
        one.sums["update"].add(packet, 10 + int(name))
        total.merge(one)
    # The accumulator's grid of 2^-32, weighted values below 2^4, and one rounding to float32.
    assert np.abs(total.sums["update"].mean() - weights @ updates / weights.sum()).max() < 1e-7
