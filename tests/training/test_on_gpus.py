"""The same on GPUs. Skipped, and said so, where there is none: see docs/hardware.md, "Measured"."""

import copy

import numpy as np
import pytest
import torch

from fedq.privacy import DPPlan, Ledger, SeededRandom, SpendContext
from fedq.quant import quantize
from fedq.training import Hardware, PrivateFit, Recipe, Trainer, hardware, layout_of, read_vector

GPUS = torch.cuda.device_count()
ONE_GPU = pytest.mark.skipif(GPUS < 1, reason="needs a GPU that torch can use; there is none here")
TWO_GPUS = pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs that torch can use; there are {GPUS} here")
CUDA = (torch.device("cuda", 0),)


def fitted(model, examples, devices, *, private=None, autocast="off"):
    model = copy.deepcopy(model)
    recipe = Recipe(batch_size=10, optimizer="SGD", lr=0.1, rounds=1, epochs=2, autocast=autocast)
    trainer = Trainer(model, layout_of(model), recipe, Hardware(devices))
    start = read_vector(model, trainer.layout)
    return trainer, trainer.fit(
        start, examples, round=1, batches=np.random.default_rng(0), torch_seed=0, private=private
    )


@ONE_GPU
@pytest.mark.parametrize("ranges", ["fixed", "learned", "observed"])
def test_a_fit_on_a_gpu_ends_where_a_fit_on_the_cpu_does(ranges, float_cnn, images):
    quantize(float_cnn, ranges=ranges)
    _, on_cpu = fitted(float_cnn, images, (hardware.CPU,))
    trainer, on_gpu = fitted(float_cnn, images, CUDA)
    assert np.abs(on_gpu.vector - on_cpu.vector).max() <= 1e-3
    assert next(trainer.model.parameters()).is_cuda
    assert trainer.model_outputs(images.inputs).device == hardware.CPU
    assert trainer.evaluate(on_gpu.vector, images).loss == pytest.approx(on_cpu.loss, abs=0.5)


@ONE_GPU
def test_dp_sgd_on_a_gpu_ends_where_it_does_on_the_cpu(quantized_cnn, images, tmp_path):
    """The same seeded noise, drawn on the CPU, and the same batches: only the order of sums differs."""
    plan = DPPlan(
        noise_multiplier=1.0,
        clip_norm=1.0,
        sample_rate=0.5,
        steps=3,
        nominal_examples=50,
        target_epsilon=1e4,
        delta=1e-5,
    )
    ends = []
    for name, devices in (("cpu", (hardware.CPU,)), ("gpu", CUDA)):
        context = SpendContext(data="images", run=name, round=1)
        private = PrivateFit(plan, SeededRandom(1), Ledger(tmp_path / f"{name}.sqlite"), context)
        _, fit = fitted(quantized_cnn, images, devices, private=private)
        assert fit.evidence.steps_noised == 3
        ends.append(fit.vector)
    assert np.abs(ends[1] - ends[0]).max() <= 1e-3


@ONE_GPU
def test_a_gpu_s_generator_stands_after_a_fit_where_it_stood_before(quantized_cnn, images):
    before = torch.cuda.get_rng_state(0)
    fitted(quantized_cnn, images, CUDA)
    assert torch.equal(torch.cuda.get_rng_state(0), before)


@ONE_GPU
def test_a_fit_in_bfloat16_on_a_gpu_gives_finite_float32_weights(quantized_cnn, images):
    _, fit = fitted(quantized_cnn, images, CUDA, autocast="bf16")
    assert fit.vector.dtype == np.float32
    assert np.isfinite(fit.vector).all()


@TWO_GPUS
@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_a_fit_on_two_gpus_ends_where_a_fit_on_one_does(ranges, float_cnn, images):
    quantize(float_cnn, ranges=ranges)
    _, alone = fitted(float_cnn, images, CUDA)
    _, together = fitted(float_cnn, images, hardware.gpus()[:2])
    assert np.abs(together.vector - alone.vector).max() <= 1e-3
