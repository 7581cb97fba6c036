"""Writes the int8 model of an experiment, runs it on int8 kernels, and compares it with the trained model.

Knows experiments; not rounds or run folders. A file is kept only if its answers equal those of the fake-quant model.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedq.experiment import Experiment
from fedq.quant import ExportError, Int8Model, export_onnx, relative_difference, with_fixed_ranges
from fedq.quant.latency import BATCH, measure
from fedq.training import outputs_of

MOST_DIFFERENT = 0.001  # largest share of examples with another answer
ENOUGH = 1000  # examples from which the share applies; with fewer, one example may differ
# Float sums in another order sometimes move a value to the next level. That changes outputs by this share of their mean
# distance from their mean. If the two largest outputs are closer than that, either class is accepted. For other tasks
# than classification, outputs may differ by this share on average.
ROUNDING = 0.01
SLOWEST = 8  # operators whose share of the int8 model's time is reported


def write_int8_model(experiment: Experiment, path: Path) -> dict[str, Any]:
    """Write the int8 model to `path` in one atomic step, and measure it on the test set on int8 kernels.

    Returns `bytes`, `int8_ops`, `float_ops`, `speedup` and `profile`; with a test set also `value` and `fake_quant`
    (the metric of both models) and, for classification, `agreement`. Returns {} where the config has no int8 model,
    and `error` where the model could not be written.
    """
    quant = experiment.config.quant
    if experiment.quantized is None or quant.activations == "off" or ranges_missing(experiment):
        return {}
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        model = exported_model(experiment)
        test = experiment.dataset.test
        examples = None if test is None else test.inputs
        export_onnx(model, experiment.dataset.input_shape, partial, skip=quant.skip, examples=examples)
        found = _measured(experiment, model, partial)
        if "error" in found:
            return found
        found |= _latency(experiment, model, partial)
        os.replace(partial, path)
        return found
    except ExportError as error:
        return {"error": str(error)}
    finally:
        partial.unlink(missing_ok=True)


def quantized_lines(experiment: Experiment) -> list[str]:
    """Lines about quantized and float layers, and why there is no int8 model, if there is none."""
    if experiment.quantized is None:
        return []
    lines = str(experiment.quantized).splitlines()
    if experiment.config.quant.activations == "off":
        lines.append("no int8 model: quant.activations=off leaves floats, and an int8 kernel multiplies integers")
    if ranges_missing(experiment):
        lines.append("no int8 model: quant.activations=dynamic is for training only without quant.calibration=FILE.npy")
    return lines


def ranges_missing(experiment: Experiment) -> bool:
    """Whether activation ranges are dynamic, and no public inputs calibrate fixed ranges for the int8 model."""
    return experiment.config.quant.activations == "dynamic" and experiment.config.quant.calibration is None


def exported_model(experiment: Experiment) -> nn.Module:
    """The fake-quant model that is exported: its ranges are fixed. ExportError where calibration fails."""
    quant, model = experiment.config.quant, experiment.trainer.model
    if experiment.quantized is None or quant.activations != "dynamic" or quant.calibration is None:
        return model
    try:
        inputs = np.load(quant.calibration, allow_pickle=False)
        return with_fixed_ranges(model, torch.from_numpy(np.ascontiguousarray(inputs, np.float32)))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ExportError(f"quant.calibration={quant.calibration}: {error}") from error


def _measured(experiment: Experiment, model: nn.Module, path: Path) -> dict[str, Any]:
    int8, trainer, test = Int8Model(path), experiment.trainer, experiment.dataset.test
    found: dict[str, Any] = {"bytes": path.stat().st_size, "int8_ops": int8.int8_ops, "float_ops": int8.float_ops}
    if test is None:
        return found
    outputs = int8(test.inputs)
    expected = outputs_of(model, test.inputs).numpy()
    found["value"], found["fake_quant"] = (trainer.score_outputs(o, test).metric for o in (outputs, expected))
    if trainer.metric.is_accuracy and test.targets.ndim == 1:
        found["agreement"] = float(np.mean(outputs.argmax(1) == expected.argmax(1)))
        if (wrong := wrong_answers(outputs, expected)) > allowed(len(expected)):
            return {
                "error": f"onnxruntime's model answers {wrong} of {len(expected)} test examples otherwise than the "
                f"fake-quant model, and rounding explains {allowed(len(expected))} at most; nothing was written. "
                "Name the layer that differs in quant.skip, or try another version of onnxruntime"
            }
    elif len(expected) and not (distance := relative_difference(outputs, expected)) <= ROUNDING:
        return {
            "error": f"the outputs of onnxruntime's model are {distance:.1%} of their own spread away from the "
            f"fake-quant model's on the test set, where rounding explains {ROUNDING:.0%} at most; nothing was written. "
            "Name the layer that differs in quant.skip, or try another version of onnxruntime"
        }
    return found


def _latency(experiment: Experiment, model: nn.Module, path: Path) -> dict[str, Any]:
    """Latency of the int8 model relative to the float32 model; {} where the float32 model cannot be exported."""
    inputs = np.zeros((1, *experiment.dataset.input_shape), np.float32)
    if experiment.dataset.test is not None and len(experiment.dataset.test):
        inputs = experiment.dataset.test.inputs[:BATCH]
    try:
        latency = measure(model, path, inputs)
    except ExportError:
        return {}
    slowest = {kind: round(share, 4) for kind, share in list(latency.profile.items())[:SLOWEST]}
    return {"speedup": float(f"{latency.speedup:.4g}"), "profile": slowest}


def wrong_answers(outputs: np.ndarray, expected: np.ndarray) -> int:
    """Number of examples whose top class differs, without those whose `expected` (n, k) classes differ by rounding."""
    best = np.sort(expected, axis=1)[:, -2:]
    spread = float(np.abs(expected - expected.mean(axis=0)).mean())
    decided = best[:, 1] - best[:, 0] > ROUNDING * spread
    return int(np.sum((outputs.argmax(1) != expected.argmax(1)) & decided))


def allowed(examples: int) -> int:
    """The number of examples that may differ."""
    return int(MOST_DIFFERENT * examples) if examples >= ENOUGH else 1
