"""DP-SGD against one example at a time, and against everything that has gone wrong in such code before."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedq.per_example import Dense
from fedq.privacy import Declined, LedgerError, SeededRandom, SpendContext, epsilon
from fedq.privacy.clipping import clip_and_sum
from tests.privacy.steps import Quiet, one_at_a_time, train


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])  # all, some and none are clipped
@pytest.mark.parametrize("batch", [[4], list(range(0, 20, 2)), list(range(20))])
def test_step_is_the_oracles_clipped_sum_over_the_public_divisor(
    clip_norm, batch, tiny_cnn, image_examples, plan, context, ledger
):
    inputs, targets = image_examples
    plan = replace(plan, clip_norm=clip_norm, steps=1)
    expected = one_at_a_time(tiny_cnn, inputs[batch], targets[batch], clip_norm) / (0.5 * 20)
    (seen,), _ = train(tiny_cnn, inputs, targets, plan, context, random=Quiet(batch), ledger=ledger)
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


def test_an_embedding_may_be_the_first_layer(plan, context, ledger):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    inputs, targets, batch = torch.randint(0, 9, (20, 3)), torch.randint(0, 3, (20,)), [1, 4, 7]
    expected = one_at_a_time(model, inputs[batch], targets[batch], 1.0) / (0.5 * 20)
    (seen,), _ = train(model, inputs, targets, replace(plan, steps=1), context, random=Quiet(batch), ledger=ledger)
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("max_batch", [1, 3, 7, 20, 1000])
def test_a_large_batch_is_processed_in_parts_and_nothing_is_dropped(
    max_batch, tiny_mlp, flat_examples, plan, context, ledger
):
    expected = one_at_a_time(tiny_mlp, *flat_examples, 1.0) / 10
    plan = replace(plan, steps=1)
    (seen,), _ = train(
        tiny_mlp,
        *flat_examples,
        plan,
        context,
        random=Quiet(list(range(20))),
        ledger=ledger,
        max_batch=max_batch,
    )
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("noise", ["gaussian", "discrete"])
@pytest.mark.parametrize("max_batch", [1, 7, 256])
def test_an_example_s_share_is_the_clipped_mean_gradient_of_its_views(
    noise, max_batch, tiny_mlp, flat_examples, plan, context, ledger
):
    inputs, targets = flat_examples
    factors = torch.tensor([1.0, -0.5, 2.0])
    expected = torch.zeros(sum(p.numel() for p in tiny_mlp.parameters()), dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        gradients = [one_at_a_time(tiny_mlp, (f * x)[None], y[None], 1e9) for f in factors]
        mean = torch.stack(gradients).mean(0)
        expected += mean * min(1.0, 1.0 / float(mean.norm()))
    (seen,), _ = train(
        tiny_mlp,
        *flat_examples,
        replace(plan, steps=1, noise=noise),
        context,
        random=Quiet(list(range(20))),
        ledger=ledger,
        max_batch=max_batch,
        augment=lambda x, uniform: (x[:, None] * factors[:, None]).flatten(0, 1),
        views=3,
    )
    # Integer shares are up to 2^-12 shorter.
    assert (seen - expected / 10).norm() <= (1e-5 if noise == "gaussian" else 5e-4) * expected.norm() / 10


def test_views_without_a_way_to_make_them_are_refused(tiny_mlp, flat_examples, plan, context, ledger):
    with pytest.raises(ValueError, match="views=2: must be 1 or more, and 1 without `augment`"):
        train(tiny_mlp, *flat_examples, plan, context, random=Quiet(), ledger=ledger, views=2)


def test_every_step_starts_from_the_weights_of_the_step_before(tiny_mlp, flat_examples, plan, context, ledger):
    inputs, targets = flat_examples
    oracle = copy.deepcopy(tiny_mlp)
    batches = [[0, 1, 2], [3, 4], [0, 19]]
    for batch in batches:
        step = one_at_a_time(oracle, inputs[batch], targets[batch], 1.0) / 10
        vector = nn.utils.parameters_to_vector(oracle.parameters()) - 0.7 * step.float()
        nn.utils.vector_to_parameters(vector.detach(), oracle.parameters())
    train(
        tiny_mlp,
        *flat_examples,
        replace(plan, steps=3),
        context,
        random=Quiet(*batches),
        ledger=ledger,
        lr=0.7,
    )
    for ours, theirs in zip(tiny_mlp.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38])  # 1e38: finite, its norm is not
@pytest.mark.parametrize("max_batch", [1, 4, 20])
def test_a_nonfinite_example_contributes_zero(poison, max_batch, tiny_cnn, image_examples, plan, context, ledger):
    inputs, targets = image_examples
    rest = [i for i in range(20) if i != 7]
    expected = one_at_a_time(tiny_cnn, inputs[rest], targets[rest], 1.0) / 10
    inputs[7, 0, 2, 3] = poison
    (seen,), _ = train(
        tiny_cnn,
        inputs,
        targets,
        replace(plan, steps=1),
        context,
        random=Quiet(list(range(20))),
        ledger=ledger,
        max_batch=max_batch,
    )
    # GroupNorm carries 1e38 to NaN or to a finite share: either is fine as long as it stays within the clip.
    if poison == 1e38:
        assert torch.isfinite(seen).all()
        assert (seen - expected).norm() <= 1.0 / 10
    else:
        assert (seen - expected).norm() <= 1e-5 * expected.norm()


def test_a_gradient_whose_norm_overflows_contributes_zero():
    weight = nn.Parameter(torch.zeros(2))
    rows = torch.tensor([[3e38, 3e38], [0.3, 0.4]])
    assert clip_and_sum([Dense(weight, rows)], [weight], 1.0) == pytest.approx([0.3, 0.4])


def test_an_example_of_gradient_zero_stays_zero():
    weight = nn.Parameter(torch.zeros(2))
    rows = torch.tensor([[0.0, 0.0], [30.0, 40.0]])
    assert clip_and_sum([Dense(weight, rows)], [weight], 1.0) == pytest.approx([0.6, 0.8], rel=1e-5)


def test_the_clip_is_over_all_parameters_together_not_each():
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    contributions = [Dense(one, torch.tensor([[3.0]])), Dense(two, torch.tensor([[4.0]]))]
    assert clip_and_sum(contributions, [one, two], 1.0) == pytest.approx([0.6, 0.8], rel=1e-5)


def test_neighbouring_data_under_the_same_randomness_differ_by_at_most_one_clip(tiny_mlp, plan, context):
    plan = replace(plan, steps=1, clip_norm=0.3, target_epsilon=math.inf)
    generator = torch.Generator().manual_seed(6)
    largest = 0.0
    for pair in range(50):
        inputs = torch.randn(12, 6, generator=generator) * 10.0 ** (pair % 5)
        targets = torch.randint(0, 3, (12,), generator=generator)
        (whole,), _ = train(tiny_mlp, inputs, targets, plan, context, random=Quiet(list(range(12))), ledger=NoLedger())
        (fewer,), _ = train(
            tiny_mlp,
            inputs[:-1],
            targets[:-1],
            plan,
            context,
            random=Quiet(list(range(12))),
            ledger=NoLedger(),
        )
        largest = max(largest, float((whole - fewer).norm()) * plan.divisor)
    # 12 float32 additions of vectors within the clip: round-off of at most 12 * 12 * 2^-24 clips
    assert 0.9 * 0.3 <= largest <= 0.3 * (1 + 144 * 2.0**-24)


class NoLedger:
    """Stands for the disk: keeps the spends in memory, so that thousands of runs stay quick."""

    def __init__(self):
        self.spends = []

    def spend(self, spend, *, guard=None):
        guard([])
        self.spends.append(spend)
        return len(self.spends)


@pytest.mark.parametrize("pairs", [64, pytest.param(1000, marks=pytest.mark.slow)])
def test_shards_of_n_and_n_minus_one_train_by_the_same_public_numbers(plan, context, pairs):
    """Rate, divisor, steps, noise scale and size of what is trained do not depend on n."""
    seen_rates = []

    class Recorder(SeededRandom):
        def bernoulli(self, q, n):
            seen_rates.append(q)
            super().bernoulli(q, 2000)  # the stream goes on alike for any n
            return np.zeros(n, dtype=bool)

    model = nn.Linear(2, 3)
    draw = np.random.default_rng(8)

    def public_side(n: int, noise: float, rate: float, nominal: int):
        seen_rates.clear()
        ledger = NoLedger()
        one = replace(plan, noise_multiplier=noise, sample_rate=rate, nominal_examples=nominal, steps=2)
        gradients, evidence = train(
            model,
            torch.zeros(n, 2),
            torch.zeros(n, dtype=torch.int64),
            replace(one, target_epsilon=math.inf, accountant="rdp"),
            context,
            random=Recorder(5),
            ledger=ledger,
        )
        return [g.tolist() for g in gradients], evidence, ledger.spends, list(seen_rates)

    settings = [(float(draw.uniform(1, 5)), float(draw.uniform(0.01, 1)), int(draw.integers(1, 999))) for _ in range(8)]
    for pair in range(pairs):
        n = int(draw.integers(1, 2000))
        setting = settings[pair % 8]
        whole, fewer = public_side(n, *setting), public_side(n - 1, *setting)
        assert whole == fewer
        noise, rate, nominal = setting
        expected = SeededRandom(5)
        expected.bernoulli(rate, 2000)
        by_hand = expected.normal(9) * noise / (rate * nominal)
        assert whole[0][0] == pytest.approx(by_hand, rel=1e-6)
        assert whole[3] == [rate, rate]


# The ledger


def test_the_spend_is_on_disk_before_anything_is_drawn(tiny_mlp, flat_examples, plan, context, ledger):
    class Suspicious(SeededRandom):
        def bernoulli(self, q, n):
            assert len(ledger.rows()) == 1
            return super().bernoulli(q, n)

    train(tiny_mlp, *flat_examples, plan, context, random=Suspicious(1), ledger=ledger)
    (row,) = ledger.rows()
    spend = row.spend
    assert (spend.noise_multiplier, spend.clip_norm, spend.sample_rate, spend.steps) == (4.0, 1.0, 0.5, 2)
    assert (spend.delta, spend.nominal_examples, spend.noise_source) == (1e-5, 20, "seeded")
    assert (spend.data, spend.run, spend.round, spend.attempt) == ("digits, client 3", "demo-1", 1, 0)
    assert (spend.unit, spend.adjacency, spend.mechanism) == ("example", "add-or-remove-one", "gaussian")


def test_a_run_that_breaks_off_has_been_paid_for_in_full(tiny_mlp, flat_examples, plan, context, ledger):
    class Breaks(SeededRandom):
        def normal(self, shape):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny_mlp, *flat_examples, plan, context, random=Breaks(1), ledger=ledger)
    assert [row.spend.steps for row in ledger.rows()] == [2]


def test_rounds_are_admitted_until_the_next_would_exceed_the_budget(tiny_mlp, flat_examples, plan, ledger):
    budget = epsilon([replace(plan, steps=6).mechanism], 1e-5)
    plan = replace(plan, target_epsilon=budget * 1.001)
    before = None
    for round in (1, 2, 3):
        train(
            tiny_mlp,
            *flat_examples,
            plan,
            SpendContext("d", "r", round),
            random=SeededRandom(round),
            ledger=ledger,
        )
        before = copy.deepcopy(tiny_mlp.state_dict())
    with pytest.raises(Declined, match="budget"):
        train(tiny_mlp, *flat_examples, plan, SpendContext("d", "r", 4), random=Quiet(), ledger=ledger, lr=1.0)
    assert len(ledger.rows()) == 3
    assert ledger.epsilon(1e-5) == budget <= plan.target_epsilon
    assert all(torch.equal(before[name], value) for name, value in tiny_mlp.state_dict().items())


def test_a_ledger_that_does_not_check_out_stops_the_run_before_any_draw(tiny_mlp, flat_examples, plan, context, ledger):
    import sqlite3

    train(tiny_mlp, *flat_examples, plan, context, random=SeededRandom(1), ledger=ledger)
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE spend SET steps = 1")
    with pytest.raises(LedgerError, match="row 1 was changed"):
        train(tiny_mlp, *flat_examples, plan, context, random=Quiet(), ledger=ledger)


def test_evidence_says_what_was_done(tiny_mlp, flat_examples, plan, context, ledger):
    tiny_mlp[0].weight.requires_grad_(False)
    _, evidence = train(tiny_mlp, *flat_examples, plan, context, random=SeededRandom(1), ledger=ledger)
    assert (evidence.noise_source, evidence.steps_noised, evidence.spend_row_id) == ("seeded", 2, 1)
    assert (evidence.noise_multiplier, evidence.clip_norm, evidence.sample_rate) == (4.0, 1.0, 0.5)
    assert evidence.noised_scalars == 5 + 5 * 3 + 3
