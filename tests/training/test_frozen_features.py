"""What fixed leading layers make of a shard is computed once, and nothing else changes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedq.data import Examples
from fedq.models import scatter_linear
from fedq.privacy import DPPlan, Ledger, SeededRandom, SpendContext
from fedq.quant import quantize
from fedq.training import PrivateFit, Recipe, Trainer, Views, layout_of, read_vector
from fedq.training.frozen_features import divided

SHAPE = (1, 8, 8)
RECIPE = Recipe(batch_size=16, optimizer="SGD", lr=0.1, rounds=2, steps=6)


@pytest.fixture
def shard() -> Examples:
    random = np.random.default_rng(3)
    inputs = random.uniform(-1, 1, (60, *SHAPE)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0, :4].sum((1, 2)) > 0).astype(np.int64))


def fixed(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def trainers(model: nn.Module) -> tuple[Trainer, Trainer]:
    """One that computes the front once, and one that knows nothing of it."""
    other = copy.deepcopy(model)
    return (
        Trainer(model, layout_of(model), RECIPE, input_shape=SHAPE),
        Trainer(other, layout_of(other), RECIPE),
    )


def private(folder, examples: int) -> PrivateFit:
    plan = DPPlan(
        noise_multiplier=1.0, clip_norm=1.0, sample_rate=0.3, steps=4, nominal_examples=examples, target_epsilon=100.0,
        delta=1e-5, accountant="rdp",
    )  # fmt: skip
    folder.mkdir()
    return PrivateFit(plan, SeededRandom(7), Ledger(folder / "ledger.db"), SpendContext("data", "run", 1))


def fitted(trainer: Trainer, examples: Examples, folder=None) -> np.ndarray:
    start = read_vector(trainer.model, trainer.layout)
    how = {} if folder is None else {"private": private(folder, len(examples))}
    return trainer.fit(start, examples, round=1, batches=np.random.default_rng(0), torch_seed=0, **how).vector


@pytest.mark.integration
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "QAT"])
@pytest.mark.parametrize("under_dp", [False, True], ids=["plain", "DP"])
def test_training_ends_where_it_does_without(shard, tmp_path, quantized, under_dp):
    model = scatter_linear(SHAPE, 2)
    if quantized:
        quantize(model)
    once, each_time = trainers(model)
    folders = (tmp_path / "a", tmp_path / "b") if under_dp else (None, None)
    found, expected = fitted(once, shard, folders[0]), fitted(each_time, shard, folders[1])
    assert np.abs(expected).max() > 0.01
    # Convolutions of other numbers of images may sum in another order, and a rounded value may fall on the next level.
    np.testing.assert_allclose(found, expected, atol=1e-3 if quantized else 1e-5)
    scores = [trainer.evaluate(vector, shard) for trainer, vector in ((once, found), (each_time, found))]
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-3)


def test_the_front_runs_once_for_each_shard(shard):
    model = scatter_linear(SHAPE, 2)
    trainer = trainers(model)[0]
    seen = []
    model.scattering.register_forward_hook(lambda *_: seen.append(1))
    start = read_vector(model, trainer.layout)
    for half in (shard[:30], shard[:30], shard[30:], shard[:30]):
        fitted(trainer, half)
        trainer.evaluate(start, half)
    assert len(seen) == 2


def test_under_views_the_front_sees_each_of_them(shard, tmp_path):
    """One view is the image itself, so its fit must end where that without views does."""
    model = scatter_linear(SHAPE, 2)
    plain = trainers(model)[0]
    recipe = replace(RECIPE, views=Views(1))
    viewed = Trainer(copy.deepcopy(model), layout_of(model), recipe, input_shape=SHAPE)
    start, found = read_vector(model, plain.layout), []
    for name, trainer in (("without", plain), ("with", viewed)):
        how = private(tmp_path / name, len(shard))
        found.append(
            trainer.fit(start, shard, round=1, batches=np.random.default_rng(0), torch_seed=0, private=how).vector
        )
    assert np.abs(found[0]).max() > 0.01
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_other_values_of_the_same_shape_are_not_taken_for_those_before():
    model = nn.Sequential(fixed(nn.Linear(2, 3)), nn.Linear(3, 2))
    front, _ = divided(model, (2,))
    inputs = np.zeros((4, 2), np.float32)
    first = front(inputs).copy()
    inputs += 1  # in place
    np.testing.assert_allclose(front(inputs), model[0](torch.from_numpy(inputs)).detach(), rtol=1e-6)
    assert not np.allclose(front(inputs), first)


def test_memory_is_four_bytes_a_value_that_is_kept_up_to_2_gib():
    model = nn.Sequential(fixed(nn.Linear(2, 3)), nn.Linear(3, 2))
    trainer = Trainer(model, layout_of(model), RECIPE, input_shape=(2,))
    assert trainer.kept_bytes(10) == 10 * 3 * 4
    assert trainer.kept_bytes(10**9) == 2**31
    assert Trainer(model, layout_of(model), RECIPE).kept_bytes(10) == 0


def test_no_example_has_outputs_of_the_right_shape():
    front, _ = divided(nn.Sequential(fixed(nn.Linear(2, 3)), nn.Linear(3, 2)), (2,))
    assert front(np.empty((0, 2), np.float32)).shape == (0, 3)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn_like(x[:, :1])


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    "leading",
    [
        [nn.Linear(4, 4)],  # learns
        [nn.Flatten(), nn.LayerNorm(4, elementwise_affine=False)],  # holds no weights
        [fixed(nn.Linear(4, 4)), nn.Dropout(0.5)],
        [fixed(Noisy(4, 4))],
        [fixed(Centred(4, 4))],
    ],
    ids=["trained", "weightless", "dropout", "random", "mixing"],
)
def test_what_is_not_fixed_is_no_front(leading):
    model = nn.Sequential(*leading, nn.Tanh(), nn.Linear(4, 2))
    front, rest = divided(model, (4,))
    assert front is None
    assert rest is model


def test_a_layer_with_running_statistics_ends_the_front():
    model = nn.Sequential(fixed(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Linear(4, 2))
    front, rest = divided(model, (4,))
    assert [type(layer) for layer in front.layers] == [nn.Linear]
    assert [type(layer) for layer in rest] == [nn.BatchNorm1d, nn.Linear]


def test_a_model_without_a_trained_layer_or_of_another_kind_has_no_front():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    for model in (nn.Sequential(fixed(nn.Linear(2, 2))), Own(fixed(nn.Linear(2, 2)), nn.Linear(2, 2))):
        assert divided(model, (2,)) == (None, model)
