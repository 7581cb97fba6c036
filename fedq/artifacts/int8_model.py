"""The int8 model of an experiment: written, run on int8 kernels, and compared with the model that was trained.

Knows experiments; not rounds or run folders. A file is there only if its answers are the fake-quant model's.
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

MOST_APART = 0.001  # share of examples with another answer
ENOUGH = 1000  # examples for a share to mean something; of fewer, one may differ
# Sums of floats in another order move a value to the next level now and then, and the outputs by this share of their
# mean distance from their mean. Where the two largest are closer than that, either answer is right; where no classes
# are told apart, outputs may differ by as much on average.
ROUNDING = 0.01
SLOWEST = 8  # operators whose share of the int8 model's time is told


def deliver_int8(experiment: Experiment, path: Path) -> dict[str, Any]:
    """Write the int8 model to `path`, whole or not at all, and measure it on the test set on int8 kernels.

    `bytes`, `int8_ops`, `float_ops`, `speedup`, `profile`; with a test set `value` and `fake_quant` (of the metric)
    and, where classes are told apart, `agreement`. Empty where the config has no int8 model. `error`: why there is
    none, and nothing was written.
    """
    quant = experiment.config.quant
    if experiment.quantized is None or quant.activations == "off" or ranges_missing(experiment):
        return {}
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        model = delivered_model(experiment)
        test = experiment.dataset.test
        examples = None if test is None else test.inputs
        export_onnx(model, experiment.dataset.input_shape, partial, skip=quant.skip, examples=examples)
        found = _measured(experiment, model, partial)
        if "error" in found:
            return found
        found |= _pace(experiment, model, partial)
        os.replace(partial, path)
        return found
    except ExportError as error:
        return {"error": str(error)}
    finally:
        partial.unlink(missing_ok=True)


def quantized_lines(experiment: Experiment) -> list[str]:
    """What was quantized and what was not, and why no int8 model comes of it."""
    if experiment.quantized is None:
        return []
    lines = str(experiment.quantized).splitlines()
    if experiment.config.quant.activations == "off":
        lines.append("no int8 model: quant.activations=off leaves floats, and an int8 kernel multiplies integers")
    if ranges_missing(experiment):
        lines.append("no int8 model: quant.activations=dynamic is for training only without quant.calibration=FILE.npy")
    return lines


def ranges_missing(experiment: Experiment) -> bool:
    """Whether activation ranges are each example's own, and no public inputs give the delivered model others."""
    return experiment.config.quant.activations == "dynamic" and experiment.config.quant.calibration is None


def delivered_model(experiment: Experiment) -> nn.Module:
    """The fake-quant model that the int8 model is made of: with ranges that stay. ExportError where it has none."""
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
                f"fake-quant model, where rounding explains {allowed(len(expected))} at most; nothing was written. "
                "Name the layer that differs in quant.skip, or try another version of onnxruntime"
            }
    elif len(expected) and not (far := relative_difference(outputs, expected)) <= ROUNDING:
        return {
            "error": f"the outputs of onnxruntime's model are {far:.1%} of their own spread away from the fake-quant "
            f"model's on the test set, where rounding explains {ROUNDING:.0%} at most; nothing was written. "
            "Name the layer that differs in quant.skip, or try another version of onnxruntime"
        }
    return found


def _pace(experiment: Experiment, model: nn.Module, path: Path) -> dict[str, Any]:
    """How fast the int8 model is beside the float32 one; nothing where that cannot be exported."""
    inputs = np.zeros((1, *experiment.dataset.input_shape), np.float32)
    if experiment.dataset.test is not None and len(experiment.dataset.test):
        inputs = experiment.dataset.test.inputs[:BATCH]
    try:
        pace = measure(model, path, inputs)
    except ExportError:
        return {}
    slowest = {kind: round(share, 4) for kind, share in list(pace.profile.items())[:SLOWEST]}
    return {"speedup": float(f"{pace.speedup:.4g}"), "profile": slowest}


def wrong_answers(outputs: np.ndarray, expected: np.ndarray) -> int:
    """Examples whose top class differs, not counting those where `expected` (n, k) is undecided by rounding."""
    best = np.sort(expected, axis=1)[:, -2:]
    spread = float(np.abs(expected - expected.mean(axis=0)).mean())
    decided = best[:, 1] - best[:, 0] > ROUNDING * spread
    return int(np.sum((outputs.argmax(1) != expected.argmax(1)) & decided))


def allowed(examples: int) -> int:
    """How many may differ."""
    return int(MOST_APART * examples) if examples >= ENOUGH else 1
