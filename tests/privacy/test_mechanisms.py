"""A noise mechanism is one entry of a dict: it is drawn, accounted, ranked and described by what it says of itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fedq.privacy import DPSGD, DPPlan, Ledger, SeededRandom, SpendContext, mechanisms
from fedq.privacy.mechanisms import NOISES, mechanism_name, spent_by, strength
from fedq.privacy.mechanisms.gaussian import Gaussian
from fedq.privacy.policy import Asked, Declined, Policy, require


@pytest.mark.parametrize("name", NOISES)
def test_the_noise_on_gradients_has_the_standard_deviation_that_is_accounted(name):
    total = torch.zeros(200_000, dtype=torch.float64)
    noised = NOISES[name].noised_gradients(total, 1.5, 0.2, SeededRandom(1))
    assert abs(float(noised.std()) / 0.3 - 1) < 0.01
    assert abs(float(noised.mean())) < 5 * 0.3 / 200_000**0.5


@pytest.mark.parametrize("name", NOISES)
def test_the_noise_on_sums_is_never_less_than_accounted(name):
    noise, grid = NOISES[name], 2.0**32
    noised = noise.noised_steps(np.full(200_000, 3 * 2**32), grid=grid, std=0.4, random=SeededRandom(2))
    assert abs(noised.std() / 0.4 - 1) < 0.01
    assert abs(noised.mean() - 3) < 5 * 0.4 / 200_000**0.5
    assert noise.drawn_std(0.4, grid=grid) >= 0.4


def test_names_of_spends_lead_back_to_their_mechanism():
    assert {spent_by(mechanism.spend_name) for mechanism in NOISES.values()} == set(NOISES.values())


def test_policies_rank_by_strength_and_seeded_noise_is_the_weakest():
    assert sorted(["discrete", "seeded", "gaussian"], key=strength) == ["seeded", "gaussian", "discrete"]
    assert mechanism_name("seeded") == "discrete"


@dataclass(frozen=True)
class Loud(Gaussian):
    """Ten times the noise that is accounted for, for a test."""

    strength: int = 3
    description: str = "ten times the noise"

    def noised_gradients(self, total, noise_multiplier, clip_norm, random):
        return super().noised_gradients(total, 10 * noise_multiplier, clip_norm, random)


def test_a_new_mechanism_needs_one_entry_only(monkeypatch, tmp_path):
    monkeypatch.setitem(mechanisms.NOISES, "loud", Loud())
    plan = DPPlan(1.0, 1.0, 0.5, 4, 20, float("inf"), 1e-5, noise="loud")
    model, weights = nn.Linear(3, 2), torch.zeros(2, 3)
    with torch.no_grad():
        model.weight.copy_(weights)
    evidence = DPSGD(plan, random=SeededRandom(3), ledger=Ledger(tmp_path / "ledger.sqlite")).run(
        model,
        torch.zeros(20, 3),
        torch.zeros(20, dtype=torch.int64),
        loss=nn.CrossEntropyLoss(reduction="sum"),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        context=SpendContext("data", "run", 1),
    )
    assert evidence.mechanism == "gaussian"
    assert 0.3 < float(model.weight.detach().std()) < 5  # 10 * 2 / sqrt(4) / 10 in expectation
    asked = Asked("example", 1.0, 1e-5, None, "", "", noise="loud")
    policy = Policy("example", 8.0, 1e-5, noise="discrete")
    require(policy, asked)
    with pytest.raises(Declined, match=r"privacy\.noise=gaussian"):
        require(policy, Asked("example", 1.0, 1e-5, None, "", "", noise="gaussian"))
