import pytest
import torch
from torch import nn

from fedq.privacy import Declined, admit, refuse_cross_example_layers, refuse_mixing
from fedq.privacy.model_validation import check_unchanged, untrained_state


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Picky(nn.Module):
    def forward(self, x):
        raise RuntimeError("only for real data")


class Recorder(nn.Module):
    """Keeps the largest value that it saw, in a parameter that is not trained and in a buffer."""

    def __init__(self):
        super().__init__()
        self.largest = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, x.max().reshape(1)))
            self.count += len(x)
        return x


def test_a_model_that_mixes_examples_is_seen():
    with pytest.raises(ValueError, match="mixes the examples"):
        refuse_mixing(nn.Sequential(Centred(), nn.Linear(4, 2)), (4,))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.LayerNorm(8)),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
)
def test_models_that_keep_examples_apart_pass_and_are_left_as_they_were(model):
    shape = (3, 4) if isinstance(model, nn.TransformerEncoderLayer) else (4,)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    refuse_mixing(model, shape)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_cannot_be_probed_is_refused():
    with pytest.raises(ValueError, match="cannot be tried out"):
        refuse_mixing(Picky(), (4,))


class Read(nn.Module):
    """Token numbers off floats, as a dataset holds them."""

    def forward(self, x):
        return x.long()


@pytest.mark.parametrize(("first", "dtype"), [([], torch.int64), ([Read()], torch.float32)], ids=["integers", "floats"])
def test_a_model_of_token_numbers_is_probed_with_tokens(first, dtype):
    apart = [*first, nn.Embedding(2, 3), nn.Flatten(), nn.Linear(12, 2)]
    refuse_mixing(nn.Sequential(*apart), (4,), dtype)
    with pytest.raises(ValueError, match="mixes the examples"):
        refuse_mixing(nn.Sequential(*apart, Centred()), (4,), dtype)


def test_the_probe_draws_nothing_from_the_caller_s_generator():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    refuse_mixing(model, (4,))
    assert torch.equal(torch.rand(2), expected)


def test_what_moved_without_being_trained_is_put_back_and_named():
    model = nn.Sequential(Recorder(), nn.Linear(3, 1))
    before = untrained_state(model)
    model(torch.full((5, 3), 7.0))
    with pytest.raises(ValueError, match=r"0\.largest changed during private training"):
        check_unchanged(model, before)
    assert model[0].largest.item() == 0
    assert model[0].count.item() == 0


def test_trained_parameters_may_move():
    model = nn.Linear(3, 1)
    before = untrained_state(model)
    nn.init.zeros_(model.weight)
    check_unchanged(model, before)
    assert before == {}


def test_a_ledger_of_other_data_is_declined_before_the_data_is_opened(ledger, plan):
    from tests.privacy.ledgers import SPEND

    ledger.spend(SPEND)
    admit(ledger, plan, data=SPEND.data)
    with pytest.raises(Declined, match="ledger"):
        admit(ledger, plan, data="another deal")


@pytest.mark.parametrize("layer", [nn.Embedding(5, 3, max_norm=1.0), nn.EmbeddingBag(5, 3, max_norm=1.0)])
def test_an_embedding_that_rescales_what_is_looked_up_is_refused(layer):
    with pytest.raises(ValueError, match=r"layer 0 has max_norm=1.*leave max_norm out"):
        refuse_cross_example_layers(nn.Sequential(layer))
