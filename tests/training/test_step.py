"""A step computed in parts, compiled or in bfloat16 is the step that one device computes eagerly."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedq.data import digits
from fedq.models import cnn_wide, mlp
from fedq.quant import Int8Model, export_onnx, quantize
from fedq.quant.grids import Grid
from fedq.training import LOSSES, Hardware, Recipe, Trainer, layout_of, read_vector
from fedq.training.step import Step

CPU = torch.device("cpu")
RANGES = ["fixed", "learned"]


def gradients(model, inputs, targets, hardware, *, full=10, autocast="off"):
    """(mean loss, flat gradient) of one batch, on a copy of the model."""
    model = copy.deepcopy(model).train()
    step = Step(model, LOSSES["cross_entropy"], hardware, full=full, autocast=autocast)
    loss = step.backward(inputs, targets)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def batch(examples, n):
    return torch.from_numpy(examples.inputs[:n]), torch.from_numpy(examples.targets[:n])


@pytest.mark.parametrize("n", [10, 7, 2, 1])  # 7: parts of 4 and 3; 1: nothing for the second device
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("ranges", RANGES)
def test_gradients_of_a_split_batch_are_those_of_the_whole(ranges, parts, n, float_cnn, images):
    quantize(float_cnn, ranges=ranges)
    whole_loss, whole = gradients(float_cnn, *batch(images, n), Hardware())
    loss, split = gradients(float_cnn, *batch(images, n), Hardware((CPU,) * parts))
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert (split - whole).norm() <= 1e-6 * whole.norm()


def test_a_weight_that_is_used_twice_gets_both_gradients_from_every_part(images):
    torch.manual_seed(1)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 36), nn.Linear(36, 2))
    tied[3].weight = tied[1].weight
    _, whole = gradients(tied, *batch(images, 9), Hardware())
    _, split = gradients(tied, *batch(images, 9), Hardware((CPU, CPU)))
    assert (split - whole).norm() <= 1e-6 * whole.norm()


def test_running_statistics_are_those_of_the_first_part(images):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 2)).train()
    inputs, targets = batch(images, 10)
    Step(model, LOSSES["cross_entropy"], Hardware((CPU, CPU)), full=10).backward(inputs, targets)
    assert int(model[0].num_batches_tracked) == 1
    assert float(model[0].running_mean) == pytest.approx(0.1 * float(inputs[:5].mean()), rel=1e-5)


def fitted(model, examples, hardware=None, **recipe):
    usual = {"batch_size": 10, "optimizer": "SGD", "lr": 0.1, "rounds": 1, "epochs": 2} | recipe
    trainer = Trainer(model, layout_of(model), Recipe(**usual), hardware)
    start = read_vector(model, trainer.layout)
    return trainer, trainer.fit(start, examples, round=1, batches=np.random.default_rng(0), torch_seed=0)


def test_a_fit_on_two_devices_ends_where_a_fit_on_one_does(quantized_cnn, images):
    _, alone = fitted(copy.deepcopy(quantized_cnn), images)
    _, together = fitted(quantized_cnn, images, Hardware((CPU, CPU)))
    assert np.abs(together.vector - alone.vector).max() <= 1e-4
    assert together.loss == pytest.approx(alone.loss, abs=1e-4)


class Counted:
    """A backend for torch.compile that computes eagerly and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counted(monkeypatch):
    backend, compiler = Counted(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend=backend, **options))
    yield backend
    torch.compiler.reset()


@pytest.mark.integration
def test_full_batches_are_compiled_once_and_odd_ones_never(counted, quantized_cnn, images):
    """Two fits of 50 examples in batches of 20: a recompilation for the last 10 would cost half a minute."""
    recipe = {"batch_size": 20, "epochs": 1}
    trainer, first = fitted(quantized_cnn, images, Hardware(compiled=True), **recipe)
    again = trainer.fit(first.vector, images, round=1, batches=np.random.default_rng(1), torch_seed=0)
    assert counted.graphs == 1
    assert np.isfinite(again.loss)


def test_a_compiled_fit_ends_where_an_eager_one_does(counted, quantized_cnn, images):
    _, eager = fitted(copy.deepcopy(quantized_cnn), images)
    _, compiled = fitted(quantized_cnn, images, Hardware(compiled=True))
    assert np.abs(compiled.vector - eager.vector).max() <= 1e-5


def doubled(graph, inputs):
    """A compiler that errs: everything that it computes is twice what it should be."""
    return lambda *arguments: tuple(2 * output for output in graph.forward(*arguments))


def test_a_compiler_that_errs_is_found_out_on_the_first_batch_and_not_used(monkeypatch, quantized_cnn, images):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend=doubled, **options))
    _, eager = fitted(copy.deepcopy(quantized_cnn), images)
    with pytest.warns(UserWarning, match="train.compile: this torch compiles the model to other gradients"):
        _, compiled = fitted(quantized_cnn, images, Hardware(compiled=True))
    assert np.array_equal(compiled.vector, eager.vector)
    torch.compiler.reset()


@pytest.mark.parametrize("drawing", [nn.Dropout(0.5), nn.BatchNorm1d(36)])
def test_comparing_the_compiler_leaves_no_trace_in_what_is_trained(drawing, counted, images):
    """The generator and the running statistics stand where they stood: the fit is the eager one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), drawing, nn.Linear(36, 2))
    _, eager = fitted(copy.deepcopy(model), images)
    _, compiled = fitted(model, images, Hardware(compiled=True))
    assert np.abs(compiled.vector - eager.vector).max() <= 1e-5


def test_without_the_option_nothing_is_compiled(counted, quantized_cnn, images):
    fitted(quantized_cnn, images)
    assert counted.graphs == 0


def test_no_example_of_a_batch_is_lost_where_the_compiler_is_for_another_size(counted, quantized_cnn, images):
    eager = gradients(quantized_cnn, *batch(images, 7), Hardware())
    compiled = gradients(quantized_cnn, *batch(images, 7), Hardware(compiled=True), full=10)
    assert compiled[0] == eager[0]
    assert torch.equal(compiled[1], eager[1])


@pytest.mark.slow  # C++ is compiled for half a minute
@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("make", [mlp, cnn_wide])
def test_compiled_kernels_give_the_gradients_of_a_quantized_model(make, ranges):
    torch.manual_seed(0)
    model = make((1, 8, 8), 2)
    quantize(model, ranges=ranges)
    inputs, targets = torch.randn(10, 1, 8, 8), torch.arange(10) % 2
    loss, eager = gradients(model, inputs, targets, Hardware())
    with warnings.catch_warnings(action="error", category=UserWarning):  # else it may be eager that is compared
        compiled_loss, compiled = gradients(model, inputs, targets, Hardware(compiled=True))
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert (compiled - eager).norm() <= 1e-5 * eager.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:train.compile")
def test_a_model_that_torch_2_13_compiles_wrongly_is_trained_rightly(images):
    torch.manual_seed(0)
    model = cnn_wide((1, 6, 6), 2)  # its last pooling is from 3x3 to 1x1
    quantize(model)
    _, eager = gradients(model, *batch(images, 10), Hardware())
    _, compiled = gradients(model, *batch(images, 10), Hardware(compiled=True))
    assert (compiled - eager).norm() <= 0.01 * eager.norm()


def test_in_bfloat16_parameters_gradients_and_loss_stay_float32(quantized_cnn, images):
    step = Step(quantized_cnn, LOSSES["cross_entropy"], Hardware(), full=10, autocast="bf16")
    loss = step.backward(*batch(images, 10))
    kinds = {
        loss.dtype,
        *(p.dtype for p in quantized_cnn.parameters()),
        *(p.grad.dtype for p in step.model.parameters()),
    }
    assert kinds == {torch.float32}


def test_products_in_bfloat16_change_the_gradient_by_their_rounding_and_no_more(float_cnn, images):
    _, exact = gradients(float_cnn, *batch(images, 10), Hardware())
    _, rounded = gradients(float_cnn, *batch(images, 10), Hardware(), autocast="bf16")
    # 2^-9 of rounding in inputs, weights and outputs of two layers, and again on the way back.
    assert 0 < (rounded - exact).norm() <= 12 * 2.0**-9 * exact.norm()


@pytest.mark.parametrize("ranges", RANGES)
def test_grids_compute_in_float32_inside_bfloat16(ranges, float_cnn, images):
    """In bfloat16 the levels 129, 131, ... of 255 would not exist."""
    quantize(float_cnn, ranges=ranges)
    step = Step(float_cnn, LOSSES["cross_entropy"], Hardware(), full=10, autocast="bf16")
    seen = []
    for grid in (m for m in float_cnn.modules() if isinstance(m, Grid)):
        grid.register_forward_hook(lambda grid, _, output: seen.append((grid, output.detach())))
    step.backward(*batch(images, 10))
    assert seen
    for grid, output in seen:
        levels = output.double() / float(grid.step)
        assert output.dtype == torch.float32
        assert (levels - levels.round()).abs().max() < 1e-4


@pytest.mark.integration
def test_a_model_quantized_and_trained_in_bfloat16_is_delivered_in_int8(tmp_path):
    examples = digits()
    torch.manual_seed(0)
    model = mlp(examples.input_shape, 10)
    quantize(model)
    recipe = {"optimizer": "Adam", "lr": 0.005, "batch_size": 32, "epochs": 3, "autocast": "bf16"}
    trainer, first = fitted(model, examples.train, **recipe)
    last = trainer.fit(first.vector, examples.train, round=1, batches=np.random.default_rng(1), torch_seed=0)
    assert last.loss < 0.5 * first.loss
    trainer.load(last.vector)
    export_onnx(model, examples.input_shape, tmp_path / "model.onnx")
    delivered = Int8Model(tmp_path / "model.onnx")(examples.test.inputs)
    fake_quant = trainer.model_outputs(examples.test.inputs)
    assert fake_quant.dtype == torch.float32
    assert np.mean(delivered.argmax(1) == fake_quant.numpy().argmax(1)) >= 0.99
    assert trainer.score_outputs(delivered, examples.test).metric > 0.85
