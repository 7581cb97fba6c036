"""What DP-SGD does with models: frozen, tied and idle parameters, what it leaves behind, what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedq.privacy import DPPlan, SeededRandom
from tests.privacy.steps import Quiet, one_at_a_time, summed_loss, train

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
