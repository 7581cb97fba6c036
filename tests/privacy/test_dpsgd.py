"""DP-SGD against one example at a time, and against everything that has gone wrong in such code before."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedq.per_example import Dense
from fedq.privacy import DPSGD, Declined, DPPlan, LedgerError, SeededRandom, SpendContext, epsilon
from fedq.privacy.clipping import clip_and_sum


def summed_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="sum")


class Quiet:
    """Draws the batches it is told to and no noise, so that a step shows the bare clipped sum."""

    source = "seeded"

    def __init__(self, *batches: list[int]) -> None:
        self.batches = list(batches)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        return np.isin(np.arange(n), self.batches.pop(0))

    def normal(self, shape):
        return np.zeros(shape)

    def discrete_gaussian(self, sigma, count):
        return np.zeros(count, dtype=np.int64)


class Watch(torch.optim.SGD):
    """An optimizer that keeps the gradients it was given."""

    def __init__(self, parameters, lr=0.0):
        super().__init__(parameters, lr=lr)
        self.seen: list[Tensor] = []

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        self.seen.append(torch.cat([p.grad.flatten().double() for p in parameters]))
        return super().step(closure)


def train(model, inputs, targets, plan, context, *, random, ledger, lr=0.0, **options):
    """Run the mechanism; returns the gradients that the optimizer saw, and the evidence."""
    watch: list[Watch] = []

    def make(parameters):
        watch.append(Watch(parameters, lr))
        return watch[0]

    mechanism = DPSGD(plan, random=random, ledger=ledger)
    options = {"loss": summed_loss} | options
    evidence = mechanism.run(model, inputs, targets, make_optimizer=make, context=context, **options)
    return watch[0].seen, evidence


def one_at_a_time(model, inputs, targets, clip_norm) -> Tensor:
    """The oracle: autograd on a single example, clipped in float64, summed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(summed_loss(model(x[None]), y[None]), parameters)
        flat = torch.cat([g.flatten().double() for g in gradients])
        total += flat * min(1.0, clip_norm / float(flat.norm()))
    return total


@pytest.fixture
def flat_examples():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(20, 6, generator=generator) * 3, torch.randint(0, 3, (20,), generator=generator)


@pytest.fixture
def image_examples():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(20, 1, 6, 6, generator=generator) * 3, torch.randint(0, 3, (20,), generator=generator)


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
        augment=lambda x: (x[:, None] * factors[:, None]).flatten(0, 1),
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


# Noise


@pytest.fixture
def wide_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 3))


def test_noise_has_the_std_of_the_plan_on_every_parameter(wide_model, plan, context, ledger):
    plan = replace(plan, noise_multiplier=2.5, clip_norm=0.4, steps=3, target_epsilon=math.inf)
    empty = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    seen, _ = train(wide_model, *empty, plan, context, random=SeededRandom(11), ledger=ledger)
    scaled = torch.stack(seen) * (0.5 * 20) / (2.5 * 0.4)  # standard normals, if all is right
    offset = 0
    for parameter in wide_model.parameters():
        part = scaled[:, offset : offset + parameter.numel()]
        offset += parameter.numel()
        n = part.numel()
        assert abs(float(part.mean())) <= 6 / math.sqrt(n)
        if n > 1000:
            assert abs(float((part**2).mean()) - 1) <= 6 * math.sqrt(2 / n)  # neither too little nor too much
    assert offset == scaled.shape[1]


def test_noise_is_new_for_every_step_and_value(wide_model, plan, context, ledger):
    empty = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    seen, _ = train(wide_model, *empty, plan, context, random=SeededRandom(11), ledger=ledger)
    values = torch.cat(seen)
    assert len(torch.unique(values)) >= 0.999 * len(values)  # float32 has few doubles among 40,000


def test_an_empty_batch_takes_a_noisy_step(tiny_mlp, flat_examples, plan, context, ledger):
    class NeverDraws(SeededRandom):
        def bernoulli(self, q, n):
            return np.zeros(n, dtype=bool)

    seen, evidence = train(tiny_mlp, *flat_examples, plan, context, random=NeverDraws(1), ledger=ledger)
    assert evidence.steps_noised == len(seen) == 2
    expected = SeededRandom(1)
    for gradient in seen:
        noise = torch.from_numpy(expected.normal(len(gradient))) * 4.0 / 10
        torch.testing.assert_close(gradient, noise, rtol=1e-6, atol=1e-7)  # the gradient is float32


def test_noise_is_added_to_the_sum_before_the_division(tiny_mlp, flat_examples, plan, context, ledger):
    class Same(Quiet):
        def normal(self, shape):
            return np.ones(shape)

    plan = replace(plan, steps=1, clip_norm=0.5)
    everything = list(range(20))
    (seen,), _ = train(tiny_mlp, *flat_examples, plan, context, random=Same(everything), ledger=ledger)
    expected = (one_at_a_time(tiny_mlp, *flat_examples, 0.5) + 4.0 * 0.5) / 10
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
def test_a_discrete_step_is_the_oracle_s_but_for_the_grid(clip_norm, tiny_cnn, image_examples, plan, context, ledger):
    plan = replace(plan, clip_norm=clip_norm, steps=1, noise="discrete")
    expected = one_at_a_time(tiny_cnn, *image_examples, clip_norm) / (0.5 * 20)
    random = Quiet(list(range(20)))
    (seen,), _ = train(tiny_cnn, *image_examples, plan, context, random=random, ledger=ledger)
    # 2^-12 of each clipped example, and 2^-13 of a clip by rounding: 2e-3 clips for 20 examples are far more.
    assert (seen - expected).norm() <= 2e-3 * clip_norm / 10


def test_a_discrete_step_of_no_example_is_whole_units_of_the_noise_asked_for(wide_model, plan, context, ledger):
    plan = replace(plan, noise_multiplier=2.5, clip_norm=0.25, steps=3, target_epsilon=math.inf, noise="discrete")
    empty = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    asked = []

    class Recorder(SeededRandom):
        def discrete_gaussian(self, sigma, count):
            asked.append((sigma, count))
            return super().discrete_gaussian(sigma, count)

    seen, evidence = train(wide_model, *empty, plan, context, random=Recorder(11), ledger=ledger)
    # A hair more noise than the multiplier says pays for the step from continuous to discrete.
    sigma, count = asked[0]
    assert asked == [(sigma, count)] * 3
    assert 0 < sigma / (2.5 * 2**26) - 1 < 1e-14
    assert sigma**2 - (2.5 * 2**26) ** 2 >= 9
    expected = SeededRandom(11)
    expected.bernoulli(0.5, 0)
    for gradient in seen:
        units = torch.from_numpy(expected.discrete_gaussian(sigma, count)).double()
        torch.testing.assert_close(gradient, units * 0.25 / 2**26 / 10, rtol=1e-6, atol=0)
    assert evidence.mechanism == "discrete-gaussian"
    assert [row.spend.mechanism for row in ledger.rows()] == ["discrete-gaussian"]


# Sampling


def test_each_example_is_drawn_on_its_own_at_the_public_rate(plan, context, ledger):
    """The gradient of example i is 1 at coordinate i, so the step shows which were drawn."""
    model = nn.Linear(50, 1, bias=False)
    plan = replace(plan, sample_rate=0.3, steps=400, noise_multiplier=1e-9, target_epsilon=math.inf, clip_norm=2.0)
    seen, _ = train(
        model,
        torch.eye(50),
        torch.zeros(50),
        plan,
        context,
        random=SeededRandom(3),
        ledger=ledger,
        loss=lambda outputs, _: outputs.sum(),
    )
    drawn = (torch.stack(seen) * plan.divisor).round()
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    n = drawn.numel()
    assert abs(float(drawn.mean()) - 0.3) <= 6 * math.sqrt(0.21 / n)
    # Poisson batches: sizes vary as a binomial does. Var of a sample variance is about 2 v^2 / steps.
    variance = 50 * 0.21
    assert abs(float(drawn.sum(1).var()) - variance) <= 6 * variance * math.sqrt(2 / 400)


class NoLedger:
    """Stands for the disk: keeps the spends in memory, so that thousands of runs stay quick."""

    def __init__(self):
        self.spends = []

    def spend(self, spend, *, guard=None):
        guard([])
        self.spends.append(spend)
        return len(self.spends)


def test_shards_of_n_and_n_minus_one_train_by_the_same_public_numbers(plan, context):
    """1,000 pairs: rate, divisor, steps, noise scale and size of what is trained do not depend on n."""
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
    for pair in range(1000):
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


# The model


def test_a_frozen_parameter_stays_as_it_is(tiny_mlp, flat_examples, plan, context, ledger):
    tiny_mlp[0].weight.requires_grad_(False)
    before = tiny_mlp[0].weight.clone()
    train(tiny_mlp, *flat_examples, plan, context, random=SeededRandom(1), ledger=ledger, lr=1.0)
    assert torch.equal(tiny_mlp[0].weight, before)


def test_a_parameter_that_the_forward_pass_leaves_out_gets_its_noise_too(flat_examples, plan, context, ledger):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(6, 3), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    seen, _ = train(Spare(), *flat_examples, plan, context, random=SeededRandom(1), ledger=ledger)
    assert (seen[0][-20:] != 0).all()


def test_a_tied_weight_counts_once_with_the_gradient_of_both_uses(plan, context, ledger):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)
    model = Tied()
    expected = one_at_a_time(model, inputs, targets, 1.0) / 10
    (seen,), _ = train(
        model, inputs, targets, replace(plan, steps=1), context, random=Quiet(list(range(20))), ledger=ledger
    )
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


def traces(model: nn.Module) -> list[str]:
    left = [name for name, p in model.named_parameters() if p.grad is not None or set(vars(p))]
    for name, module in model.named_modules():
        left += [name] * (len(module._forward_hooks) + len(module._backward_hooks))
        left += [key for key in vars(module) if key in ("activations", "max_batch_len", "autograd_grad_sample_hooks")]
    return left


def test_the_model_is_left_clean_for_the_next_client(tiny_cnn, image_examples, plan, context, ledger):
    tiny_cnn[1].eval()
    modes = [module.training for module in tiny_cnn.modules()]
    for seed in (1, 2):
        train(tiny_cnn, *image_examples, plan, context, random=SeededRandom(seed), ledger=ledger)
        assert traces(tiny_cnn) == []
        assert [module.training for module in tiny_cnn.modules()] == modes
    tiny_cnn(image_examples[0]).sum().backward()  # an ordinary step works again
    assert not hasattr(next(tiny_cnn.parameters()), "grad_sample")


def test_the_model_is_left_clean_after_an_error_too(tiny_mlp, flat_examples, plan, context, ledger):
    def breaks_on_a_batch(outputs, targets):
        if len(outputs) > 2:
            raise RuntimeError("out of memory")
        return summed_loss(outputs, targets)

    with pytest.raises(RuntimeError, match="out of memory"):
        train(
            tiny_mlp,
            *flat_examples,
            plan,
            context,
            random=SeededRandom(1),
            ledger=ledger,
            loss=breaks_on_a_batch,
        )
    assert traces(tiny_mlp) == []


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(5), nn.SyncBatchNorm(5), nn.InstanceNorm1d(5, track_running_stats=True)]
)
def test_layers_that_mix_examples_are_refused_before_anything_is_spent(layer, flat_examples, plan, context, ledger):
    model = nn.Sequential(nn.Linear(6, 5), layer, nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"layer 1 is .*GroupNorm"):
        train(model, *flat_examples, plan, context, random=Quiet(), ledger=ledger)
    assert ledger.rows() == []


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_that_does_not_sum_is_refused_before_anything_is_spent(
    reduction, tiny_mlp, flat_examples, plan, context, ledger
):
    with pytest.raises(ValueError, match="must SUM"):
        train(
            tiny_mlp,
            *flat_examples,
            plan,
            context,
            random=Quiet(),
            ledger=ledger,
            loss=lambda outputs, targets: cross_entropy(outputs, targets, reduction=reduction),
        )
    assert ledger.rows() == []


def test_a_buffer_that_learns_from_the_data_is_refused(flat_examples, plan, context, ledger):
    class Observer(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("largest", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.largest = torch.maximum(self.largest, x.detach().abs().max())
            return x

    model = nn.Sequential(Observer(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"buffer 0\.largest changed"):
        train(model, *flat_examples, plan, context, random=SeededRandom(1), ledger=ledger)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        return x * self.factor


def test_what_opacus_cannot_differentiate_is_refused_before_anything_is_spent(flat_examples, plan, context, ledger):
    class ScaledLinear(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.scale = Scale()

        def forward(self, x):
            return super().forward(self.scale(x))

    model = ScaledLinear()
    with pytest.raises(ValueError, match=r"no per-example gradients.*buffers"):
        train(model, *flat_examples, plan, context, random=Quiet(), ledger=ledger)
    assert ledger.rows() == []
    assert traces(model) == []


def test_a_constant_buffer_is_fine(flat_examples, plan, context, ledger):
    model = nn.Sequential(Scale(), nn.Linear(6, 3))
    expected = one_at_a_time(model, *flat_examples, 1.0) / 10
    (seen,), _ = train(
        model, *flat_examples, replace(plan, steps=1), context, random=Quiet(list(range(20))), ledger=ledger
    )
    assert (seen - expected).norm() <= 1e-5 * expected.norm()


def test_arguments_that_do_not_fit_are_refused_before_anything_is_spent(tiny_mlp, flat_examples, plan, context, ledger):
    inputs, targets = flat_examples
    with pytest.raises(ValueError, match="20 inputs and 19 targets"):
        train(tiny_mlp, inputs, targets[:-1], plan, context, random=Quiet(), ledger=ledger)
    with pytest.raises(ValueError, match="max_batch=0"):
        train(tiny_mlp, inputs, targets, plan, context, random=Quiet(), ledger=ledger, max_batch=0)
    for parameter in tiny_mlp.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        train(tiny_mlp, inputs, targets, plan, context, random=Quiet(), ledger=ledger)
    assert ledger.rows() == []


def test_a_little_noise_still_learns(plan, context, ledger):
    """Two clusters, linear model: the mechanism descends, it does not only add noise."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(200) % 2
    inputs = torch.randn(200, 2, generator=generator) + 4 * (targets[:, None] * 2.0 - 1)
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    plan = DPPlan(1.0, 1.0, 0.5, 30, 200, math.inf, 1e-5)
    train(model, inputs, targets, plan, context, random=SeededRandom(1), ledger=ledger, lr=1.0)
    assert (model(inputs).argmax(1) == targets).double().mean() > 0.97


def test_a_plain_convolution_in_channels_last_has_the_same_gradients(tiny_cnn, image_examples, plan, context, ledger):
    expected = one_at_a_time(tiny_cnn, *image_examples, 1.0) / 10
    tiny_cnn.to(memory_format=torch.channels_last)
    plan = replace(plan, steps=1)
    (seen,), _ = train(tiny_cnn, *image_examples, plan, context, random=Quiet(list(range(20))), ledger=ledger)
    assert (seen - expected).norm() <= 1e-5 * expected.norm()
