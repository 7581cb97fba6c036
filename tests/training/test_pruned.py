"""Pruned weights are exactly 0.0 before, during and after training, whatever the optimizer."""

import numpy as np
import pytest
import torch
from torch import nn

from fedq.data import Examples
from fedq.per_example import Dense
from fedq.privacy import DPPlan, Ledger, SeededRandom, SpendContext
from fedq.privacy.clipping import clip_and_sum
from fedq.privacy.dpsgd import DPSGD
from fedq.training import Recipe, Trainer, layout_of, read_vector
from fedq.training.pruned import pruned_in
from fedq.training.trainer import PrivateFit


class Blur(torch.optim.SGD):
    """Moves every weight whatever its gradient, as one that mixes a matrix's values does."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(1.0)


@pytest.fixture
def examples():
    inputs = np.random.default_rng(5).normal(size=(40, 30)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] > 0).astype(np.int64))


@pytest.fixture
def make_trainer():
    def make(optimizer="SGD", **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2))
        recipe = Recipe(10, optimizer, 0.1, rounds=9, epochs=2, optimizer_options=options)
        return Trainer(model, layout_of(model), recipe)

    return make


@pytest.fixture
def kept():
    """Every tenth of the first layer's 480 weights, all of its biases and of the second layer."""
    kept = np.ones(480 + 16 + 32 + 2, bool)
    kept[:480] = np.arange(480) % 10 == 0
    return kept


def fit(trainer, examples, kept, **options):
    start = read_vector(trainer.model, trainer.layout)
    return start, trainer.fit(
        start, examples, round=1, batches=np.random.default_rng(0), torch_seed=1, kept=kept, **options
    )


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("Adam", {"weight_decay": 0.1}),
        ("AdamW", {"weight_decay": 0.1}),
        ("RMSprop", {"momentum": 0.9}),
        ("Rprop", {}),
    ],
)
def test_pruned_weights_end_as_zero_and_the_others_are_trained(make_trainer, examples, kept, optimizer, options):
    start, fitted = fit(make_trainer(optimizer, **options), examples, kept)
    assert not fitted.vector[~kept].any()
    assert (fitted.vector[kept] != start[kept]).all()


def test_an_optimizer_that_moves_them_all_the_same_is_undone(make_trainer, examples, kept, monkeypatch):
    monkeypatch.setattr(torch.optim, "Blur", Blur, raising=False)
    _, fitted = fit(make_trainer("Blur"), examples, kept)
    assert not fitted.vector[~kept].any()


def test_pruned_weights_take_no_part_in_the_model_while_it_is_trained(make_trainer, examples, kept):
    """The same model without them: what they were before makes no difference to the others."""
    one, other = make_trainer(), make_trainer()
    start = read_vector(one.model, one.layout)
    changed = np.where(kept, start, 7).astype(np.float32)
    options = {"round": 1, "torch_seed": 1, "kept": kept}
    a = one.fit(start, examples, batches=np.random.default_rng(0), **options)
    b = other.fit(changed, examples, batches=np.random.default_rng(0), **options)
    assert np.array_equal(a.vector, b.vector)


def test_a_clipped_gradient_is_one_of_kept_weights(make_trainer, examples, kept):
    """What is pruned takes nothing of train.clip_grad: one step of SGD moves by lr * clip."""
    trainer = make_trainer()
    trainer.recipe = Recipe(40, "SGD", 1.0, rounds=1, steps=1, clip_grad=0.01)
    start, fitted = fit(trainer, examples, kept)
    assert np.linalg.norm((fitted.vector - start)[kept]) == pytest.approx(0.01, rel=1e-3)


def test_a_later_fit_without_a_mask_trains_all(make_trainer, examples, kept):
    trainer = make_trainer()
    start = read_vector(trainer.model, trainer.layout)
    fit(trainer, examples, kept)
    options = {"round": 1, "torch_seed": 1}
    fitted = trainer.fit(start, examples, batches=np.random.default_rng(0), **options)
    fresh = make_trainer().fit(start, examples, batches=np.random.default_rng(0), **options)
    assert np.array_equal(fitted.vector, fresh.vector)


# --- under DP ---------------------------------------------------------------------------------------------


PLAN = DPPlan(
    noise_multiplier=4.0,
    clip_norm=1.0,
    sample_rate=0.5,
    steps=3,
    nominal_examples=20,
    target_epsilon=8.0,
    delta=1e-5,
)
CONTEXT = SpendContext(data="digits", run="run", round=1)


def test_under_dp_they_are_zero_too_and_noise_was_on_every_value(make_trainer, examples, kept, tmp_path):
    private = PrivateFit(PLAN, SeededRandom(1), Ledger(tmp_path / "ledger.sqlite"), CONTEXT)
    start, fitted = fit(make_trainer("Adam", weight_decay=0.1), examples, kept, private=private)
    assert not fitted.vector[~kept].any()
    assert (fitted.vector[kept] != start[kept]).all()
    assert (fitted.evidence.noised_scalars, fitted.evidence.steps_noised) == (530, 3)


def test_pruned_values_use_up_nothing_of_the_clip_norm():
    """Gradient (3, 4) clipped to 2: (1.2, 1.6). Without the first value: (0, 2)."""
    parameter = nn.Parameter(torch.zeros(2))
    for pruned, expected in [({}, [1.2, 1.6]), ({parameter: torch.tensor([True, False])}, [0.0, 2.0])]:
        contributions = [Dense(parameter, torch.tensor([[3.0, 4.0]]))]
        assert clip_and_sum(contributions, [parameter], 2.0, pruned).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_noise_of_kept_values_is_that_of_a_run_without_a_mask(tmp_path):
    """An empty shard: the gradient is the noise alone, and the mask takes away what falls on pruned values."""

    def weights_after(pruned):
        model = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(model.weight)
        mechanism = DPSGD(PLAN, random=SeededRandom(3), ledger=Ledger(tmp_path / f"{bool(pruned)}.sqlite"))
        mechanism.run(
            model,
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
            loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="sum"),
            make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            context=CONTEXT,
            pruned={model.weight: torch.tensor(pruned).view(2, 4)} if pruned else None,
        )
        return model.weight.detach().flatten()

    gone = [True, False, False, True, False, True, False, False]
    everything, masked = weights_after(None), weights_after(gone)
    assert everything.all()
    assert torch.equal(masked, everything.masked_fill(torch.tensor(gone), 0.0))


def test_without_a_mask_no_parameter_is_looked_at(make_trainer):
    trainer = make_trainer()
    assert pruned_in(trainer.model, trainer.layout, None) == {}
