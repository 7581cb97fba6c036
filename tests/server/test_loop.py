"""The rounds: how long they go on, what they keep, and what is left when they end early."""

import numpy as np
import pytest
from hand_made import START, run

from fedq.flower import wire
from fedq.server.loop import Rules, Score, Scores, _Best
from fedq.server.round_aggregate import Traffic


def refusing(reason, *, until=99):
    def lie(told):
        if told.round > until:
            return honest(told)
        return wire.write_refusal(wire.Refusal(told.round, reason))

    return lie


def honest(told):
    from flwr.app import RecordDict

    return RecordDict(told.records())


def validated(values):
    """Scores whose validation metric is that of the round."""
    return lambda round, master: Scores(validation=Score(metric=values[round]))


def masters():
    """Collects the model that is scored in each round."""
    seen = {}
    return seen, lambda round, master: seen.setdefault(round, master.copy()) is None or Scores()


def test_the_log_has_the_start_and_every_round():
    ran = run(rounds=3)
    assert [(round.number, round.status) for round in ran.rounds] == [(0, "initial"), (1, "ok"), (2, "ok"), (3, "ok")]
    assert (ran.outcome.status, ran.outcome.rounds) == ("finished", 3)


def test_the_same_run_twice_gives_the_same_bits():
    assert run(cohort=2, rounds=4).model == run(cohort=2, rounds=4).model


def test_participations_are_counted_when_a_client_is_asked():
    """Refusals too: under DP what counts is what a client may have spent."""
    ran = run({"0": refusing("declined")}, rounds=4, cohort=2)
    assert ran.outcome.participations == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert [round.participations for round in ran.rounds] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(("reason", "counted"), [("budget", 0), ("policy", 0), ("ledger", 2), ("declined", 2)])
def test_a_refusal_counts_unless_it_surely_came_before_the_spend(reason, counted):
    """`ledger` may come after it: a head that could not be written leaves its row in the account."""
    ran = run({"0": refusing(reason)}, rounds=2)
    assert ran.outcome.participations == {"0": counted, "1": 2, "2": 2, "3": 2}


def test_a_round_that_all_ledgers_failed_in_counts_for_all():
    ran = run({name: refusing("ledger") for name in "0123"}, rounds=9)
    assert (ran.outcome.status, ran.outcome.rounds) == ("ended", 1)
    assert [round.participations for round in ran.rounds] == [0, 1]


def test_train_loss_is_that_of_the_accepted():
    assert [round.train_loss for round in run().rounds] == [None, 0.5, 0.5]


def test_nobody_tells_a_loss_under_dp():
    assert [round.train_loss for round in run(private=True).rounds] == [None, None, None]


# --- the model that is kept ------------------------------------------------------------------------------


def test_last_keeps_the_last_model():
    seen, score = masters()
    assert run(rounds=3, score=score).outcome.master.tobytes() == seen[3].tobytes()


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 3)])
def test_best_keeps_the_model_of_the_best_validation(greater, best):
    seen, remember = masters()
    values = {0: 0.0, 1: 0.5, 2: 0.9, 3: 0.1, 4: 0.7}

    def score(round, master):
        remember(round, master)
        return validated(values)(round, master)

    ran = run(rounds=4, keep="best", greater_is_better=greater, score=score)
    assert ran.outcome.master.tobytes() == seen[best].tobytes()
    assert ran.outcome.scores.validation.metric == values[best]


def test_a_model_that_is_not_yet_as_sparse_as_asked_is_never_the_best():
    """The second scores best, and is too dense; of the two after it the third is better."""
    best = _Best(Rules(4, 1, keep="best"))
    models = [np.full(2, number, np.float32) for number in range(4)]
    kept = [
        best.offer(model, validated({number: metric})(number, model), settled=settled)[0]
        for number, (model, metric, settled) in enumerate(
            zip(models, [0.5, 0.9, 0.6, 0.4], [False, False, True, True], strict=True)
        )
    ]
    assert [int(model[0]) for model in kept] == [0, 1, 2, 2]


def test_best_goes_on_training_from_the_last_model():
    falling = {round: -float(round) for round in range(4)}
    seen, remember = masters()
    run(rounds=3, keep="best", score=lambda r, m: (remember(r, m), validated(falling)(r, m))[1])
    seen_last, remember_last = masters()
    run(rounds=3, score=remember_last)
    assert seen[3].tobytes() == seen_last[3].tobytes()


def test_a_metric_that_is_no_number_is_never_the_best():
    values = {0: 0.0, 1: 0.5, 2: float("nan"), 3: 0.4}
    assert run(rounds=3, keep="best", score=validated(values)).outcome.scores.validation.metric == 0.5


def test_the_test_set_has_no_say_in_what_is_best():
    rising = lambda round, master: Scores(evaluation=Score(metric=round), validation=Score(metric=-round))  # noqa: E731
    assert run(rounds=3, keep="best", score=rising).outcome.scores.validation.metric == -1


def test_only_due_rounds_are_scored():
    seen, score = masters()
    run(rounds=5, due=lambda round: round % 2 == 0, score=score)
    assert sorted(seen) == [0, 2, 4]


def test_bytes_of_asking_the_clients_belong_to_the_round():
    plain = run(rounds=1).rounds[1].traffic
    asked = run(rounds=1, score=lambda r, m: Scores(traffic=Traffic(up=5, down=7))).rounds[1].traffic
    assert (asked.up - plain.up, asked.down - plain.down) == (5, 7)


# --- early ends --------------------------------------------------------------------------------------------


def test_the_run_ends_when_every_client_has_spent_its_budget():
    ran = run({name: refusing("budget") for name in "0123"}, rounds=9)
    assert (ran.outcome.status, ran.outcome.rounds) == ("ended", 1)
    assert ran.outcome.reason == "round 1: every client has spent its privacy budget, or cannot keep its ledger"
    assert ran.model == START.tobytes()


def test_a_cohort_without_budget_does_not_end_the_run_of_the_others():
    """With one client a round, one that says so (or lies) would end it for all."""
    ran = run({"2": refusing("budget")}, rounds=8, cohort=1)
    assert (ran.outcome.status, ran.outcome.rounds) == ("finished", 8)
    assert [round.status for round in ran.rounds].count("skipped") == 2


def test_small_cohorts_end_once_the_last_client_has_spent_its_budget():
    ran = run({name: refusing("budget") for name in "0123"}, rounds=99, cohort=2)
    assert (ran.outcome.status, ran.outcome.rounds) == ("ended", 2)


def test_a_refusal_for_another_reason_does_not_end_the_run():
    assert run({name: refusing("declined") for name in "0123"}, rounds=3).outcome.status == "finished"


def interrupt(at):
    def watch(round):
        if round.number == at:
            raise KeyboardInterrupt

    return watch


def test_ctrl_c_between_rounds_keeps_what_is_done():
    ran = run(rounds=5, watch=interrupt(2))
    assert (ran.outcome.status, ran.outcome.rounds) == ("interrupted", 2)
    assert ran.outcome.reason == "Ctrl-C or SIGTERM after round 2"
    assert ran.model == run(rounds=2).model


def test_ctrl_c_while_clients_train_keeps_the_last_whole_round():
    def stop_in_round_3(told):
        if told.round == 3:
            raise KeyboardInterrupt
        return honest(told)

    ran = run({"1": stop_in_round_3}, rounds=5)
    assert (ran.outcome.status, ran.outcome.rounds) == ("interrupted", 2)
    assert ran.model == run(rounds=2).model


def test_ctrl_c_while_the_model_is_scored_keeps_the_last_whole_round():
    def score(round, master):
        if round == 2:
            raise KeyboardInterrupt
        return Scores(evaluation=Score(metric=float(round)))

    ran = run(rounds=5, score=score)
    assert (ran.outcome.status, ran.outcome.rounds) == ("interrupted", 1)
    assert ran.outcome.scores.evaluation.metric == 1.0
    assert ran.model == run(rounds=1).model


def test_a_skipped_round_has_the_scores_of_the_model_that_it_leaves():
    def score(round, master):
        return Scores(evaluation=Score(metric=float(np.abs(master).sum())))

    late = {name: (lambda told: honest(told) if told.round == 1 else refusing("declined")(told)) for name in "0123"}
    first, second = run(late, score=score).rounds[1:]
    assert second.status == "skipped"
    assert first.scores.evaluation.metric is not None
    assert second.scores == first.scores
