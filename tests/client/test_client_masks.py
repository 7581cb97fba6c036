"""A client that is sent a mask: what it trains, what it sends, and which masks it refuses before any data is opened."""

import struct

import numpy as np
import pytest
import xxhash

from fedq import codec
from fedq.codec import Float32, Int8, MalformedUpdate, MaskedLayout
from fedq.core.randomness import generator, key64
from fedq.flower import wire


@pytest.fixture
def kept(trainer):
    """Every fourth weight of the first layer: 120 of 480."""
    return MaskedLayout(trainer.layout, masked(trainer.layout, 0))


def masked(layout, first):
    mask = np.ones(layout.size, bool)
    mask[:480] = np.arange(480) % 4 == first
    return mask


@pytest.fixture
def ask_kept(start):
    def ask(round, kept, *, accepted=-1, holdout=0.0, mask=None):
        packet = codec.encode(kept.gather(start), "float32", layout=kept.layout, kind="weights", round=round)
        told = kept.packet(round) if mask is None else mask
        return wire.Request(round, accepted, {"model": packet, "mask": told}, holdout)

    return ask


def fitted(trainer, examples, weights, round, kept):
    return trainer.fit(
        weights,
        examples,
        round=round,
        batches=generator(0, "batches", round, "3"),
        torch_seed=key64(0, "torch", round, "3"),
        kept=kept.mask,
    ).vector


def test_the_update_holds_the_kept_values_of_what_training_changed(
    make_client, ask_kept, trainer, examples, start, kept
):
    reply = make_client(codec=Float32()).train(ask_kept(1, kept))
    weights = kept.scatter(kept.gather(start))
    change = fitted(trainer, examples, weights, 1, kept) - weights
    assert not change[~kept.mask].any()
    assert np.array_equal(codec.decode(reply.packets["update"], kept.layout), kept.gather(change))
    assert set(reply.packets) == {"update"}


def test_the_packet_names_the_kept_weights_as_its_base(make_client, ask_kept, start, kept):
    header = codec.peek(make_client().train(ask_kept(4, kept)).packets["update"])
    assert header.base == codec.digest(kept.gather(start))
    assert header.layout == kept.layout.digest


def test_a_mask_makes_the_update_shorter(make_client, ask, ask_kept, kept):
    """480 levels become 120 float32, which are fewer values than a codec is for."""
    dense = make_client(codec=Float32()).train(ask(1)).packets["update"]
    sparse = make_client(codec=Float32()).train(ask_kept(1, kept)).packets["update"]
    assert len(dense) - len(sparse) == 4 * 360


def test_what_was_lost_of_a_weight_that_is_pruned_since_is_dropped(make_client, ask, ask_kept, kept):
    client = make_client(codec=Int8(block=64, rounding="stochastic", error_feedback=True))
    client.train(ask(1))
    assert client.state.residual(1)[~kept.mask].any()
    client.train(ask_kept(2, kept, accepted=1))
    residual = client.state.residual(2)
    assert residual.shape == (kept.whole.size,)
    assert not residual[~kept.mask].any()


def test_an_evaluation_is_of_the_pruned_model(make_client, ask, ask_kept, start, kept):
    dense_zeros = ask(1, weights=kept.scatter(kept.gather(start)), holdout=0.25)
    assert make_client().evaluate(ask_kept(1, kept, holdout=0.25)).loss == make_client().evaluate(dense_zeros).loss


def locked_shard():
    raise AssertionError("the shard was opened")


def sealed(mask):
    """With the checksum that its changed bytes need."""
    return mask[:36] + struct.pack("<Q", xxhash.xxh3_64_intdigest(mask[:36] + mask[44:])) + mask[44:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mask: b"", "layout"),  # the weights are not all of them
        (lambda mask: mask[:-1], "length"),
        (lambda mask: mask + b"\0", "trailing"),
        (lambda mask: b"FEDQ" + mask[4:], "magic"),
        (lambda mask: mask[:-1] + bytes([mask[-1] ^ 1]), "checksum"),
        (lambda mask: sealed(mask[:8] + struct.pack("<I", 2) + mask[12:]), "round"),
        (lambda mask: sealed(mask[:20] + bytes(16) + mask[36:]), "layout"),
        (lambda mask: sealed(mask[:44] + b"\x03" + mask[45:]), "indices"),
        (lambda mask: sealed(mask[:45] + b"\xff" * (len(mask) - 45)), "deflate"),
    ],
)
def test_a_mask_that_is_not_as_it_should_be_is_refused(make_client, ask_kept, kept, change, reason):
    client = make_client(shard=locked_shard)
    with pytest.raises(MalformedUpdate) as caught:
        client.train(ask_kept(1, kept, mask=change(kept.packet(1))))
    assert caught.value.reason == reason


def test_weights_under_another_mask_are_refused(make_client, ask_kept, trainer, kept):
    other = MaskedLayout(trainer.layout, masked(trainer.layout, 1))
    with pytest.raises(MalformedUpdate, match=r"^layout: "):
        make_client(shard=locked_shard).train(ask_kept(1, kept, mask=other.packet(1)))


def test_a_mask_beside_changes_is_refused(make_client, kept):
    request = wire.Request(1, -1, {"delta.0": b"", "mask": kept.packet(1)})
    with pytest.raises(wire.MalformedReply, match="a request brings model"):
        make_client(shard=locked_shard).train(request)
