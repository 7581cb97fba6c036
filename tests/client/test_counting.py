"""A client that is asked how well a model does, under DP: what it checks first, what it sends, what it writes down."""

import json
from dataclasses import replace

import pytest

from fedq.client import Privacy
from fedq.client.state import LOG
from fedq.data.split import held_out_by_content
from fedq.flower import wire
from fedq.privacy import Declined, DPPlan, Ledger, SeededRandom

# Noise on a count is other than 0 with a chance of 2 exp(-50).
PLAN = DPPlan(
    noise_multiplier=4.0, clip_norm=1.0, sample_rate=0.5, steps=2, nominal_examples=40, target_epsilon=100.0,
    delta=1e-5, accountant="rdp", evaluation_epsilon=50.0,
)  # fmt: skip


@pytest.fixture
def private(tmp_path):
    return Privacy(PLAN, tmp_path / "ledger.sqlite", SeededRandom(1), "forty examples", "run-1", holdout=0.25)


def locked():
    raise AssertionError("data was opened")


def test_what_is_sent_is_two_counts_of_the_examples_that_are_held_out(
    make_client, ask, private, trainer, examples, start, tmp_path
):
    reply = make_client(privacy=private).evaluate(ask(7, holdout=0.25))
    held = examples[held_out_by_content(examples.inputs, examples.targets, 0.25)]
    assert reply == wire.Reply(7, counts=trainer.count_right(start, held))
    assert sum(reply.counts) == len(held) > 0
    assert wire.fields_of(wire.write_reply(reply)) <= wire.PUBLIC_FIELDS
    (line,) = [x for x in (tmp_path / "3" / LOG).read_text().splitlines() if "evaluated" in x]
    assert line == f"round=7 evaluated={len(held)} noisy_right={reply.counts[0]} noisy_wrong={reply.counts[1]}"


def test_the_counts_are_paid_for_and_the_evidence_points_to_it(make_client, ask, private, tmp_path):
    make_client(privacy=private).evaluate(ask(7, holdout=0.25))
    (row,) = Ledger(private.ledger).rows()
    assert (row.spend.mechanism, row.spend.round, row.spend.run) == ("discrete-laplace", 7, "run-1")
    assert row.spend.data == "forty examples"
    (line,) = (tmp_path / "3" / "evidence.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["round"], told["spend_row_id"], told["noised_scalars"]) == (7, row.id, 2)
    assert (told["sample_rate"], told["steps_noised"], told["clip_norm"]) == (1.0, 1, 1.0)


def test_without_budget_nothing_is_opened_and_nothing_spent(make_client, ask, private):
    poor = replace(private, plan=replace(PLAN, target_epsilon=10.0))
    with pytest.raises(Declined, match=r"^budget: "):
        make_client(privacy=poor, shard=locked).evaluate(ask(7, holdout=0.25))
    assert Ledger(private.ledger).rows() == []


def test_a_ledger_of_other_data_is_not_charged(make_client, ask, private):
    make_client(privacy=private).evaluate(ask(7, holdout=0.25))
    other = replace(private, data_name="other examples")
    with pytest.raises((Declined, RuntimeError), match=r"other examples|forty examples"):
        make_client(privacy=other, shard=locked).evaluate(ask(8, holdout=0.25))
    assert len(Ledger(private.ledger).rows()) == 1


def test_another_holdout_than_the_client_s_own_is_refused_unopened(make_client, ask, private):
    with pytest.raises(wire.MalformedReply, match=r"holds out 0.5 of the examples, this client 0.25"):
        make_client(privacy=private, shard=locked).evaluate(ask(7, holdout=0.5))
    assert not private.ledger.exists()
