"""The noise of a DP-SGD step: its size, where and when it is added, in floats and on the grid; and sampling."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedq.privacy import SeededRandom
from tests.privacy.steps import Quiet, one_at_a_time, train

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
