"""The delivered int8 file beside the model that was trained, and beside float32 of the same model in onnxruntime."""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedq.core.compiler import without_compiler
from fedq.data import DataNotFoundError, Dataset, Examples, fashion_mnist
from fedq.data.idx import DEBIAN_FOLDER
from fedq.quant import Int8Model, QuantReport, export_float32, export_onnx, quantize
from fedq.quant.layers import QuantizedLayer
from simulations.bench.quant_steps import INPUT_SHAPE, MODELS, fresh, in_training_format
from simulations.bench.row import Row
from simulations.bench.timing import FULL, Contender, Effort, medians

# Beside MODELS, timed untrained: name -> (model, its options).
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn_wide": ("cnn_wide", {}),
    "mlp_wide": ("mlp", {"hidden": (512, 512)}),
}
BATCHES = (1, 64)
_SHORTEST = 0.05  # seconds of one timing, at least
# (epochs, batch, Adam's first rate): 10 to 40 s on one core, and more than 80 % of the test images.
TRAINING = {
    "cnn": (1.0, 32, 3e-3),
    "mlp": (3.0, 32, 3e-3),
    "resnet8_gn": (0.4, 16, 5e-3),
    "transformer": (1.0, 32, 3e-3),
}


@dataclass(frozen=True)
class Trained:
    """A model and how far it was trained."""

    model: nn.Module
    report: QuantReport | None  # None: float32
    epochs: float


def data(folder: str = DEBIAN_FOLDER) -> Dataset | None:
    """Fashion-MNIST, or None where it is not installed."""
    try:
        return fashion_mnist(folder, validation_fraction=0)
    except DataNotFoundError:
        return None


def rows(dataset: Dataset | None, effort: Effort) -> Iterator[Row]:
    """Size and speed of every model; agreement and accuracy where there is data to train on."""
    is_full = effort.repeats >= FULL.repeats
    for name in MODELS:
        trained = train(name, dataset, quantized=True)
        with tempfile.TemporaryDirectory() as folder:
            files = Files.of(trained.model, Path(folder))
            if dataset is not None:
                yield agreement(name, trained, files, dataset, effort)
            yield _size(name, files)
            yield from _speed(name, files, effort)
    for name, (kind, options) in WIDE.items():
        model = fresh(kind, **options)
        quantize(model)
        with tempfile.TemporaryDirectory() as folder:
            yield from _speed(name, Files.of(model, Path(folder)), effort)
    if is_full and dataset is not None:
        for name in MODELS:
            yield from _all_levels(name, dataset, effort)


@dataclass(frozen=True)
class Files:
    """One model on disk, twice."""

    int8: Path
    float32: Path

    @classmethod
    def of(cls, model: nn.Module, folder: Path) -> "Files":
        files = cls(folder / "int8.onnx", folder / "float32.onnx")
        export_onnx(model, INPUT_SHAPE, files.int8)
        export_float32(model, INPUT_SHAPE, files.float32)
        return files


def train(name: str, dataset: Dataset | None, *, quantized: bool, **options: Any) -> Trained:
    """Plain central training with Adam, its rate falling to 0; in evaluation mode at the end."""
    model = fresh(name)
    report = quantize(model, **options) if quantized else None
    if dataset is None:
        return Trained(model.eval(), report, 0)
    inputs, targets = torch.from_numpy(dataset.train.inputs), torch.from_numpy(dataset.train.targets)
    epochs, batch, rate = TRAINING[name]
    generator, total = torch.Generator().manual_seed(0), round(epochs * len(inputs))
    orders = [torch.randperm(len(inputs), generator=generator) for _ in range(math.ceil(epochs))]
    with without_compiler():
        optimizer = torch.optim.Adam(in_training_format(model.train()).parameters())
    seen = 0
    for chosen in torch.cat(orders)[:total].split(batch):
        optimizer.param_groups[0]["lr"] = rate * (1 - seen / total)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        with without_compiler():
            optimizer.step()
        seen += len(chosen)
    return Trained(model.eval(), report, epochs)


def agreement(name: str, trained: Trained, files: Files, dataset: Dataset, effort: Effort) -> Row:
    assert dataset.test is not None
    assert trained.report is not None
    inputs, targets = dataset.test.inputs, dataset.test.targets
    expected, delivered = outputs(trained.model, dataset.test), Int8Model(files.int8)
    got, one_by_one = in_batches(delivered, inputs, 64), len(inputs) if effort.repeats >= FULL.repeats else 2000
    alone = in_batches(delivered, inputs[:one_by_one], 1)
    step, what = output_step(trained.model), "the last layer's input step times its largest weight step"
    largest = float(np.abs(got - expected).max())
    if step is None:
        step, what = largest, "the largest difference"
    top = np.sort(expected, axis=1)
    words = (
        f"share of {len(inputs):,} test images with the same top class on int8 kernels, batch 64, as in the fake-quant "
        f"model; batch 1: {same(alone, expected[:one_by_one]):.4%} of {one_by_one:,}; accuracy "
        f"{accuracy(expected, targets):.2%} fake-quant, {accuracy(got, targets):.2%} int8; largest output difference "
        f"{largest:.3g}; {np.mean(top[:, -1] - top[:, -2] < step):.2%} of the top-2 margins are under {step:.2g}, "
        f"{what}; trained {trained.epochs:.2g} epochs, weight levels to {trained.report.form.largest}"
    )
    return Row(f"int8_agreement_{name}", same(got, expected), 1.0, "", "ours/reference", words)


def outputs(model: nn.Module, examples: Examples) -> np.ndarray:
    with torch.inference_mode():
        parts = torch.from_numpy(examples.inputs).split(250)
        return torch.cat([model(part) for part in parts]).numpy()


def in_batches(model: Int8Model, inputs: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([model(inputs[start : start + batch]) for start in range(0, len(inputs), batch)])


def same(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.mean(ours.argmax(1) == theirs.argmax(1)))


def accuracy(found: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(found.argmax(1) == targets))


def output_step(model: nn.Module) -> float | None:
    """What one level of the last layer's int32 sums is worth, in its coarsest channel; None where it is not int8."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer) and isinstance(m, nn.Linear)]
    if not layers or layers[-1].source is None:
        return None
    weight = layers[-1].weight.detach().abs().amax(dim=1).max()
    return float(layers[-1].source[0].step) * float(weight) / layers[-1].form.largest


def _size(name: str, files: Files) -> Row:
    # Not over the float32 .onnx: as torch's exporter writes it, it holds some weights twice.
    ours, plain = files.int8.stat().st_size, 4 * sum(p.numel() for p in fresh(name).parameters())
    limit = 0.27 * plain + 4096
    words = (
        f"{name}: the int8 .onnx, the whole file, over 4 bytes a parameter; 27 % of these and 4 kB are "
        f"{limit:,.0f} bytes, the file is {ours - limit:+,.0f}"
    )
    return Row(f"int8_file_{name}", ours, plain, "bytes", "ours/reference", words)


def _speed(name: str, files: Files, effort: Effort) -> Iterator[Row]:
    sessions = {kind: session(path) for kind, path in (("int8", files.int8), ("float32", files.float32))}
    slowest = ", ".join(f"{share:.0%} {op}" for op, share in Int8Model(files.int8).profile(_batch(64))[:3])
    for size in BATCHES:
        seconds = paced(sessions, {"input": _batch(size)}, effort)
        ms = {kind: 1e3 * taken for kind, taken in seconds.items()}
        words = (
            f"onnxruntime's float32 {name} over its int8, batch {size}, one thread, all graph optimisations on both "
            f"sides; int8 spends {slowest} (batch 64)"
        )
        yield Row(f"int8_speedup_{name}_batch{size}", ms["int8"], ms["float32"], "ms", "reference/ours", words)


def _batch(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, *INPUT_SHAPE), dtype=np.float32)


def session(model: Path | bytes) -> Any:
    """One thread, onnxruntime's default graph optimisations, which are all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def paced(sessions: dict[str, Any], feed: dict[str, np.ndarray], effort: Effort) -> dict[str, float]:
    """Median seconds of one call of each, in turns, many calls in a timing."""

    def calls(which: Any, times: int) -> Contender:
        def run() -> float:
            begun = time.perf_counter()
            for _ in range(times):
                which.run(None, feed)
            return (time.perf_counter() - begun) / times

        return run

    once = max(min(calls(which, 1)() for _ in range(3)) for which in sessions.values())
    times = math.ceil(_SHORTEST / once)
    return medians({kind: calls(which, times) for kind, which in sessions.items()}, repeats=effort.repeats)


def _all_levels(name: str, dataset: Dataset, effort: Effort) -> Iterator[Row]:
    """int8's whole range of weights, which x86 without VNNI may saturate; and what float32 reaches in the same time."""
    trained = train(name, dataset, quantized=True, weight_range=127)
    with tempfile.TemporaryDirectory() as folder:
        row = agreement(name, trained, Files.of(trained.model, Path(folder)), dataset, effort)
    yield replace(row, name=f"int8_agreement_{name}_127")
    plain = train(name, dataset, quantized=False)
    assert dataset.test is not None
    found = [accuracy(outputs(t.model, dataset.test), dataset.test.targets) for t in (trained, plain)]
    words = f"test accuracy of {name} after {plain.epochs:g} epochs: QAT with weight levels to 127 over float32"
    yield Row(f"qat_accuracy_{name}", *found, "", "ours/reference", words)
