"""What layers draw in a private fit: from keystreams of 256 bits, never from a generator that others could search."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedq.data import Examples
from fedq.privacy import DPSGD, ClientRound, Ledger, SecureRandom, SeededRandom, is_private
from fedq.privacy.draws import KeystreamDraws, MadeUpWords
from fedq.training import PrivateFit, Recipe, Trainer, Views, layout_of, read_vector
from tests.privacy.steps import summed_loss
from tests.privacy.test_evidence import SPEND, WHOLE

pytestmark = pytest.mark.hostile
COUNT = 4096


class Scaled(nn.Module):
    """Multiplies by what `draw` makes of the input."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * self.draw(x) if self.training else x


def with_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def drawing(draw):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Scaled(draw), nn.Linear(8, 3))


def fit(model, plan, context, ledger, examples, *, random):
    make = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    mechanism = DPSGD(plan, random=random, ledger=ledger)
    evidence = mechanism.run(model, *examples, loss=summed_loss, make_optimizer=make, context=context)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), evidence


def test_masks_do_not_depend_on_torch_s_generator(plan, context, tmp_path, flat_examples):
    """It kept 32 bits of a secret seed: 2^32 masks can be tried, and the right one shows an example's neighbours."""
    found = []
    for seed in (1, 2):
        ledger = Ledger(tmp_path / f"{seed}.sqlite")
        model = with_dropout()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(fit(model, plan, context, ledger, flat_examples, random=SeededRandom(5))[0])
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*found)


def test_nothing_in_a_private_fit_seeds_torch_s_generator(plan, context, ledger, flat_examples, monkeypatch):
    model, seeds = with_dropout(), []
    plain = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    fit(model, plan, context, ledger, flat_examples, random=SecureRandom())
    assert set(seeds) <= {0}  # a public one, of the probe for mixing


def test_each_source_of_a_private_fit_has_a_secret_of_at_least_128_bits(plan, context, tmp_path, monkeypatch):
    """Batches, noise, masks and views: every keystream that is opened, and what each is read for."""
    opened = []
    plain = SecureRandom.stream

    def noted(self, use):
        opened.append((use, plain(self, use)))
        return opened[-1][1]

    monkeypatch.setattr(SecureRandom, "stream", noted)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.3), nn.Flatten(), nn.Linear(32, 3))
    layout = layout_of(model)
    trainer = Trainer(model, layout, Recipe(4, "SGD", 0.1, 1, steps=2, views=Views(2)))
    images = Examples(np.random.default_rng(0).random((20, 1, 6, 6), np.float32), np.arange(20) % 3)
    private = PrivateFit(plan, SecureRandom(), Ledger(tmp_path / "ledger.sqlite"), context)
    fitted = trainer.fit(
        read_vector(model, layout), images, round=1, batches=np.random.default_rng(0), torch_seed=0, private=private
    )
    assert {use for use, _ in opened} == {"masks", "views"}
    assert all(source.source == "os" and source.secret_bits == 256 for _, source in opened)
    # No two streams are one: each has a key of its own.
    assert len({bytes(source.words(4)) for source in (private.random, *(s for _, s in opened))}) == 3
    assert fitted.evidence.secret_bits == dict.fromkeys(("batches", "noise", "masks", "views"), 256)


def test_a_model_that_draws_nothing_has_no_masks_on_record(plan, context, ledger, tiny_mlp, flat_examples):
    _, evidence = fit(tiny_mlp, plan, context, ledger, flat_examples, random=SecureRandom())
    assert evidence.secret_bits == {"batches": 256, "noise": 256}


def verdict(evidence):
    done = replace(WHOLE.rounds[-1].done, secret_bits=evidence)
    last = ClientRound("a", 2, done, replace(SPEND, round=2), 100)
    return is_private(replace(WHOLE, rounds=(*WHOLE.rounds[:-1], replace(last, done=replace(done, spend_row_id=2)))))


@pytest.mark.parametrize("bits", [0, 32, 64, 127, math.nan])
@pytest.mark.parametrize("use", ["batches", "noise", "masks", "views", "numpy's own generator"])
def test_a_run_with_any_source_of_fewer_bits_is_not_private(use, bits):
    private, reasons = verdict({"batches": 256, "noise": 256, use: bits})
    assert not private
    assert any(use in reason and "secret bits" in reason for reason in reasons)


def test_a_run_whose_sources_are_not_on_record_is_not_private():
    assert verdict({"batches": 256, "noise": 128})[0]
    assert not verdict({})[0]


def test_seeded_noise_has_no_secret(plan, context, ledger, flat_examples):
    _, evidence = fit(with_dropout(), plan, context, ledger, flat_examples, random=SeededRandom(1))
    assert evidence.secret_bits == dict.fromkeys(("batches", "noise", "masks"), 0)


OTHERS = {
    "numpy": lambda x: torch.from_numpy(np.random.random(tuple(x.shape)).astype(np.float32)),
    "python": lambda x: random.random(),
}


@pytest.mark.parametrize("which", OTHERS)
def test_a_model_that_draws_from_a_shared_generator_is_refused_before_the_spend(
    which, plan, context, ledger, flat_examples
):
    with pytest.raises(ValueError, match=f"draws from {which}'s own generator"):
        fit(drawing(OTHERS[which]), plan, context, ledger, flat_examples, random=SecureRandom())
    assert ledger.rows() == []


def test_an_operation_that_has_no_keystream_is_refused_before_the_spend(plan, context, ledger, flat_examples):
    model = drawing(lambda x: torch.poisson(x.abs()))
    with pytest.raises(ValueError, match=r"draws by aten\.poisson"):
        fit(model, plan, context, ledger, flat_examples, random=SecureRandom())
    assert ledger.rows() == []


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_what_draws_only_where_real_values_occur_is_on_record(name, plan, context, ledger, flat_examples):
    """The made-up examples are zeros: a layer that looks at values shows in the state of the generator alone."""
    draw = {"torch": lambda x: torch.rand(x.shape), "numpy": OTHERS["numpy"]}[name]

    class OfReal(nn.Module):
        def forward(self, x):
            return x * draw(x) if x.abs().max() > 90 else x

    inputs, targets = flat_examples
    model = nn.Sequential(OfReal(), nn.Linear(6, 3))
    _, evidence = fit(model, plan, context, ledger, (100 + inputs.abs(), targets), random=SecureRandom())
    assert evidence.secret_bits[f"{name}'s own generator"] == 0


def test_a_generator_of_a_layer_s_own_is_not_asked(plan, context, tmp_path, flat_examples):
    own = torch.Generator().manual_seed(7)
    before = own.get_state()
    model = drawing(lambda x: torch.rand(x.shape, generator=own))
    fit(model, plan, context, Ledger(tmp_path / "ledger.sqlite"), flat_examples, random=SecureRandom())
    assert torch.equal(before, own.get_state())


# Layers and functions whose draws have a mean and a variance that theory gives.
DRAWS = {
    "rand": (torch.rand_like, 1 / 2, 1 / 12),
    "rand, by shape": (lambda x: torch.rand(x.shape), 1 / 2, 1 / 12),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(1, 4), 2.5, 9 / 12),
    "randn": (torch.randn_like, 0.0, 1.0),
    "normal": (lambda x: torch.normal(2.0, 3.0, x.shape), 2.0, 9.0),
    "normal, by tensors": (lambda x: torch.normal(torch.zeros_like(x), 2.0), 0.0, 4.0),
    "normal_": (lambda x: torch.empty_like(x).normal_(1, 2), 1.0, 4.0),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2.0), 1 / 2, 1 / 4),
    "bernoulli": (lambda x: torch.bernoulli(torch.full_like(x, 0.3)), 0.3, 0.21),
    "bernoulli, by p": (lambda x: torch.bernoulli(x, p=0.3), 0.3, 0.21),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), 0.3, 0.21),
    "randint": (lambda x: torch.randint(0, 5, x.shape).float(), 2.0, 2.0),
    "randint, from": (lambda x: torch.randint_like(x, 1, 6), 3.0, 2.0),
    "dropout": (lambda x: functional.dropout(torch.ones_like(x), 0.2), 1.0, 0.25),
    "rrelu": (lambda x: functional.rrelu(-torch.ones_like(x), 0, 1, training=True), -1 / 2, 1 / 12),
    "native dropout": (lambda x: torch.native_dropout(torch.ones_like(x), 0.2, True)[0], 1.0, 0.25),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_their_distribution(name):
    draw, mean, variance = DRAWS[name]
    with KeystreamDraws(SeededRandom(3), range(COUNT)) as draws:
        values = draw(torch.zeros(COUNT, 8)).double()
    assert draws.answered > 0
    n = values.numel()
    assert abs(float(values.mean()) - mean) <= 6 * math.sqrt(variance / n)
    # A fourth moment of at most 9 variances squared, that of an exponential, bounds the error of the variance.
    assert abs(float(values.var()) - variance) <= 6 * variance * math.sqrt(9 / n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uniform_numbers_stay_below_one_in_every_type(dtype):
    class Largest(MadeUpWords):
        def words(self, count):
            return np.full(count, 2**64 - 1, np.uint64)

    with KeystreamDraws(Largest(0)):
        assert float(torch.rand((), dtype=dtype)) < 1


@pytest.mark.parametrize("shape", [(4, 6), (8, 3), (7, 4, 5), (4, 2, 3, 3)])
def test_an_example_gets_its_own_numbers_wherever_it_stands(shape):
    """Axis 0, or the one that is as long as the batch: sequences first, heads beside examples."""
    who, order = np.array([5, 9, 2, 7]), [2, 0, 3, 1]
    axis = 0 if shape[0] % 4 == 0 else 1

    def drawn(examples):
        with KeystreamDraws(MadeUpWords(0), examples):
            values = torch.rand(shape).movedim(axis, 0)
            return values.reshape(4, -1)

    assert torch.equal(drawn(who)[order], drawn(who[order]))


def test_draws_that_all_examples_share_are_no_example_s_own():
    with KeystreamDraws(MadeUpWords(0), range(4)):
        one = torch.rand(3, 3)
    with KeystreamDraws(MadeUpWords(0), range(10, 14)):
        assert torch.equal(one, torch.rand(3, 3))
