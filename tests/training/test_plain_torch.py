"""A quantized model is a module like any other to torch's own data parallelism."""

import copy
import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedq.quant import quantize


def quantized(ranges="fixed"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    quantize(model, ranges=ranges)
    return model


def examples():
    stream = torch.Generator().manual_seed(1)
    return torch.randn(12, 20, generator=stream), torch.randint(0, 4, (12,), generator=stream)


def flat_gradient(model, inputs, targets):
    cross_entropy(model(inputs), targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_data_parallel_gives_the_gradients_of_the_whole_batch(ranges):
    """Over the GPUs that there are; without one it is the model itself."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = quantized(ranges)
    whole = flat_gradient(copy.deepcopy(model), *examples())
    inputs, targets = (tensor.to(device) for tensor in examples())
    split = flat_gradient(nn.DataParallel(model.to(device)), inputs, targets).cpu()
    assert (split - whole).norm() <= 1e-6 * whole.norm()


def _one_of_two(rank, store, ranges, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    inputs, targets = (tensor[rank::2] for tensor in examples())
    gradient = flat_gradient(nn.parallel.DistributedDataParallel(quantized(ranges)), inputs, targets)
    results.put(gradient.tolist())
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_distributed_data_parallel_gives_each_process_the_gradients_of_the_whole_batch(ranges, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=_one_of_two, args=(r, tmp_path / "store", ranges, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    gradients = [torch.tensor(results.get()) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    whole = flat_gradient(quantized(ranges), *examples())
    for gradient in gradients:
        assert (gradient - whole).norm() <= 1e-6 * whole.norm()
