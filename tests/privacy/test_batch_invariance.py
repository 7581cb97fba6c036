"""An example's share is the same to the bit in every batch and at every place, also where weights blow rounding up."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedq import models
from fedq.per_example import recorded
from fedq.privacy import DPSGD, DPPlan, SeededRandom, SpendContext, dpsgd
from fedq.privacy.batch_invariance import aligned_products, is_batch_invariant, microbatch_size, microbatches
from fedq.privacy.clipping import UNITS
from fedq.privacy.mechanisms.discrete_gaussian import DiscreteGaussian
from fedq.quant import enable_per_example_gradients, quantize, register_grad_samplers

SHAPE = (1, 28, 28)


def summed_loss(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="sum")


class Everybody(SeededRandom):
    def bernoulli(self, q, n):
        return np.ones(n, dtype=bool)


@pytest.fixture
def summed(ledger, monkeypatch):
    """(model, inputs, targets) -> what a step of DP-SGD adds up over these examples, in whole units."""
    totals = []

    def without_noise(self, total, noise_multiplier, clip_norm, random):
        totals.append(total)
        return torch.zeros_like(total)

    monkeypatch.setattr(DiscreteGaussian, "noised_gradients", without_noise)
    plan = DPPlan(
        noise_multiplier=4.0, clip_norm=1.0, sample_rate=0.5, steps=1, nominal_examples=40,
        target_epsilon=float("inf"), delta=1e-5, accountant="rdp", noise="discrete",
    )  # fmt: skip

    def of(model, inputs, targets, **options):
        DPSGD(plan, random=Everybody(0), ledger=ledger).run(
            model,
            inputs,
            targets,
            loss=summed_loss,
            make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
            context=SpendContext("data", "run", 1),
            **options,
        )
        return totals[-1]

    return of


def examples(count, shape=SHAPE):
    stream = torch.Generator().manual_seed(7)
    return torch.randn((count, *shape), generator=stream), torch.randint(0, 10, (count,), generator=stream)


def cancelling():
    """A model of a hostile server: behind a logit that is 0 but for rounding stands a weight of 2^40."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 16), nn.Linear(16, 10))
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=stream) / p.shape[-1] ** 0.5)
        order = torch.randperm(512, generator=stream)
        first, second = order[:256], order[256:]
        model[1].weight[second], model[1].bias[second] = model[1].weight[first], model[1].bias[first]
        model[3].weight[0, second] = -model[3].weight[0, first]
        model[3].bias[0] = 0.0
        model[4].weight[:, 0] *= 2.0**40
    return model


def of_fedq(name, *, quantized=False):
    torch.manual_seed(0)
    model = getattr(models, name)(SHAPE, 10)
    if quantized:
        quantize(model)
    else:
        enable_per_example_gradients(model)
    register_grad_samplers()
    stream = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=stream) / p[0].numel() ** 0.5)
    return model


MODELS = {
    "cancelling": cancelling,
    **{name: lambda name=name: of_fedq(name) for name in ("mlp", "cnn", "scatter_linear", "transformer")},
    **{f"{name} W8A8": lambda name=name: of_fedq(name, quantized=True) for name in ("mlp", "cnn", "scatter_linear")},
}


# The first, a middle and the last place in a batch; the larger models at the middle one.
PLACES = [
    pytest.param(name, place, marks=[] if place == 17 or name in ("cancelling", "mlp") else pytest.mark.slow)
    for name in MODELS
    for place in (0, 17, 40)
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_one_example_more_moves_the_sum_by_its_own_share_exactly(name, place, summed):
    inputs, targets = examples(41)
    others = [i for i in range(41) if i != place]
    model = MODELS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of these is trained on one example at a time
        everybody, without = summed(model, inputs, targets), summed(model, inputs[others], targets[others])
        alone = summed(model, inputs[[place]], targets[[place]])
    assert alone.norm() > 0
    assert torch.equal(everybody - without, alone)


def test_without_one_size_that_model_moves_the_others_by_whole_clips(monkeypatch, summed):
    """The attack, so that the test above is known to see it."""
    inputs, targets = examples(41)

    def as_they_come(drawn, size, *, padded):
        yield drawn, len(drawn)

    monkeypatch.setattr(dpsgd, "microbatches", as_they_come)
    model = cancelling()
    everybody, without = summed(model, inputs, targets), summed(model, inputs[1:], targets[1:])
    alone = summed(model, inputs[:1], targets[:1])
    assert (everybody - without - alone).norm() > UNITS


def test_views_of_an_example_are_averaged_alike(summed):
    inputs, targets = examples(23)
    model = of_fedq("cnn")

    def brighter(images, uniform):
        return torch.stack([images, images + 0.1, images * 1.1], 1).flatten(0, 1)

    def of(rows):
        return summed(model, inputs[rows], targets[rows], augment=brighter, views=3)

    assert torch.equal(of(list(range(23))) - of(list(range(1, 23))), of([0]))


def test_padding_has_no_share_whatever_it_holds(summed):
    """A part is filled up with its own examples; here with one that is dropped, and whose 0 * NaN would stay."""
    inputs, targets = examples(1)
    assert summed(of_fedq("mlp"), torch.full_like(inputs, float("nan")), targets).norm() == 0


class Sequenced(nn.Module):
    """Takes steps of odd widths, and answers with one number."""

    def __init__(self):
        super().__init__()
        self.each, self.last = nn.Linear(5, 7), nn.Linear(7, 1)

    def forward(self, x):
        return self.last(self.each(x).tanh().mean(1))


def quantized(*layers):
    model = nn.Sequential(*layers)
    quantize(model)
    register_grad_samplers()
    return model


# Odd lengths everywhere, and single outputs: what a kernel that looks at addresses rounds by place.
ODD = {
    "mlp": (lambda: nn.Sequential(nn.Linear(13, 31), nn.ReLU(), nn.Linear(31, 1)), (13,)),
    "linear": (lambda: nn.Linear(783, 1), (783,)),
    "quantized": (lambda: quantized(nn.Linear(30, 17), nn.ReLU(), nn.Linear(17, 1)), (30,)),
    "norms": (lambda: nn.Sequential(nn.Linear(7, 15), nn.LayerNorm(15), nn.GELU(), nn.Linear(15, 1)), (7,)),
    "sequence": (Sequenced, (11, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.GroupNorm(1, 5), nn.Flatten(), nn.Linear(45, 1)), (3, 11)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(300, 1)), (1, 12, 12)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 1)), (2, 6, 6)),
}


@pytest.mark.parametrize("size", [2, 9, 48, 67, 103, 115])
@pytest.mark.parametrize(("make", "shape"), ODD.values(), ids=ODD)
def test_layers_of_torch_and_fedq_are_alike_whatever_their_lengths_and_the_size_of_a_part(make, shape, size):
    model = make()
    inputs, targets = torch.zeros((2, *shape)), torch.zeros((2, 1))
    with recorded(model) as recorder:
        assert is_batch_invariant(
            recorder, lambda a, b: (a - b).square().sum(), inputs, targets, size=size, clip_norm=1.0, pruned={}
        )


class SharedDraw(nn.Module):
    """Draws one number for all examples of a part, as weights that are rounded at random do."""

    def forward(self, x):
        return x * (1 + torch.rand(()))


class ByPlace(nn.Module):
    """Rounds otherwise at another place, as a kernel might."""

    def forward(self, x):
        return x * (1 + 2.0**-22 * torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1)))


class ByNeighbours(nn.Module):
    """Looks at another example, by less than a probe for mixing can tell from rounding."""

    def forward(self, x):
        return x * (1 + 2.0**-22 * x.abs().amax())


def test_what_all_examples_of_a_part_share_by_chance_tells_parts_apart():
    model = nn.Sequential(SharedDraw(), nn.Linear(6, 10))
    assert not probed(model, (6,))
    assert not probed(model, (6,), draws_only=True)


def test_sums_of_floats_need_no_places_but_no_shared_draws_either():
    assert probed(nn.Sequential(ByPlace(), nn.Linear(6, 10)), (6,), draws_only=True)


def test_gaussian_noise_trains_such_a_model_on_one_example_at_a_time_too(ledger):
    plan = DPPlan(4.0, 1.0, 0.5, 1, 40, float("inf"), 1e-5, accountant="rdp")
    model, inputs = nn.Sequential(SharedDraw(), nn.Linear(6, 10)), examples(9, (6,))
    with pytest.warns(UserWarning, match="one example at a time"):
        DPSGD(plan, random=SeededRandom(0), ledger=ledger).run(
            model,
            *inputs,
            loss=summed_loss,
            make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
            context=SpendContext("data", "run", 1),
        )


@pytest.mark.parametrize("odd", [ByPlace(), ByNeighbours()])
def test_what_is_rounded_by_place_or_neighbours_is_trained_on_one_example_at_a_time(odd, summed):
    inputs, targets = examples(9, (6,))
    model = nn.Sequential(odd, nn.Linear(6, 10))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        everybody = summed(model, inputs, targets)
        alone = [summed(model, inputs[[i]], targets[[i]]) for i in range(9)]
    assert "one example at a time" in str(said[0].message)
    assert torch.equal(everybody, sum(alone))


def probed(model, shape, *, size=16, dtype=torch.float32, **options):
    inputs, targets = torch.zeros((3, *shape), dtype=dtype), torch.zeros(3, dtype=torch.long)
    with recorded(model) as recorder:
        return is_batch_invariant(
            recorder, summed_loss, inputs, targets, size=size, clip_norm=1.0, pruned={}, **options
        )


def test_the_probe_leaves_weights_and_generators_as_they_were():
    model = of_fedq("cnn")
    before, state = [p.detach().clone() for p in model.parameters()], torch.random.get_rng_state()
    assert probed(model, SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_the_probe_looks_at_other_weights_than_the_server_s():
    """With all weights 0 every place has the same bits."""
    model = nn.Sequential(nn.Linear(6, 4), ByPlace(), nn.Linear(4, 10))
    for p in model.parameters():
        nn.init.zeros_(p)
    assert not probed(model, (6,))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 10)),  # masks are each place's own
        nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 10)),
    ],
)
def test_dropout_and_odd_lengths_are_no_reason_to_go_one_by_one(model):
    assert probed(model, model[0].weight.shape[1:])


def test_token_numbers_are_made_up_where_inputs_are_tokens():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 10))
    assert probed(model, (3,), dtype=torch.long)


def test_what_is_not_finite_counts_as_different():
    class Broken(nn.Module):
        def forward(self, x):
            return x.log() * torch.nan

    assert not probed(nn.Sequential(nn.Linear(6, 10), Broken()), (6,))


@pytest.mark.parametrize("aligned", [True, False])
def test_rows_of_odd_length_need_alignment(aligned):
    """What the fix is for: may pass without it on machines whose kernels do not look at addresses."""
    layer, x = nn.Linear(3969, 10), torch.randn((1, 3969)).expand(48, 3969).contiguous()
    with torch.no_grad(), aligned_products() if aligned else nullcontext():
        y = layer(x)
    assert torch.allclose(y, layer(x), atol=1e-5)
    assert not aligned or (y == y[0]).all()


@pytest.mark.parametrize(
    ("expected", "rate", "most", "size"),
    [(256, 1.0, 128, 128), (256, 0.1, 128, 96), (16, 0.1, 128, 24), (0.5, 0.01, 128, 2), (600, 0.1, 1, 1)],
)
def test_parts_are_equally_long_and_hold_most_batches(expected, rate, most, size):
    assert microbatch_size(expected, rate, most) == size


@pytest.mark.parametrize("count", [0, 1, 5, 6, 11, 12])
def test_every_index_is_in_one_part_and_parts_are_full(count):
    parts = list(microbatches(np.arange(10, 10 + count), 6))
    assert [len(rows) for rows, _ in parts] == [6] * -(-count // 6)
    assert [int(i) for rows, real in parts for i in rows[:real]] == list(range(10, 10 + count))
