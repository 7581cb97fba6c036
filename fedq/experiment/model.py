"""Builds the model of an experiment, float or quantization-aware. Reports what is wrong as problems."""

import copy
import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedq.config import Config, Problem
from fedq.config.client_level import protects_examples
from fedq.core.randomness import key64
from fedq.data import Dataset
from fedq.experiment.binding import arguments, bound, error_text, problem
from fedq.privacy import refuse_cross_example_layers, refuse_mixing
from fedq.quant import ExportError, QuantReport, export_onnx, quantize


def make_model(config: Config, factory: Any, given: Any, dataset: Dataset, found: list[Problem]) -> nn.Module | None:
    """The float model, checked; None, with a problem added to `found`, if it cannot be used."""
    options = arguments(config, "model", given)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key64(config.seed, "initialisation"))
            if isinstance(factory, nn.Module):
                net = copy.deepcopy(factory)
            else:
                own = {"input_shape": dataset.input_shape, "num_outputs": dataset.num_outputs}
                accepted = inspect.signature(factory).parameters
                own = {k: v for k, v in own.items() if k in accepted}
                before = len(found)
                given_arguments = bound(factory, options, "model", found)
                if len(found) > before:
                    return None
                net = factory(**{**own, **given_arguments})
        if not isinstance(net, nn.Module):
            raise TypeError(f"returned a {type(net).__name__}, not a torch.nn.Module")
    except (Exception, SystemExit) as error:  # a user's model may raise anything
        value = config.model.get("_target_", factory)
        found.append(problem(error, key="model", value=value, fix="Or choose another model=NAME"))
        return None
    bad = [name for name, p in net.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    if bad:
        found.append(Problem("model", bad[0], "holds NaN or infinite values at the start", "Fix its initialisation"))
        return None
    if protects_examples(config):
        try:
            refuse_cross_example_layers(net)
            refuse_mixing(net, dataset.input_shape)
        except ValueError as error:
            fix = "Use GroupNorm in the model, or privacy=off"
            found.append(problem(error, key="model", value=config.model.get("_target_", "object"), fix=fix))
            return None
    return net if _answers(config, net, dataset, found) else None


def _answers(config: Config, net: nn.Module, dataset: Dataset, found: list[Problem]) -> bool:
    """Whether a forward pass over two examples gives outputs of the right shape."""
    sample = torch.from_numpy(np.ascontiguousarray(dataset.train.inputs[:2]))
    try:
        net.eval()
        with torch.no_grad():
            shape = tuple(net(sample).shape)
        net.train()
    except Exception as error:
        rule = f"fails on inputs of shape {tuple(sample.shape)}: {error_text(error)}"
        found.append(Problem("model", config.model.get("_target_", "object"), rule, "Choose a model for this data"))
        return False
    if shape != (len(sample), dataset.num_outputs):
        rule = f"gives outputs of shape {shape} where the data needs ({len(sample)}, {dataset.num_outputs})"
        found.append(
            Problem(
                "model",
                config.model.get("_target_", "object"),
                rule,
                "Take num_outputs as an argument of the model",
            )
        )
        return False
    return True


def _check_calibration(path: str, input_shape: tuple[int, ...], found: list[Problem]) -> None:
    """Add a problem unless the file of public inputs exists and holds inputs of the right shape."""
    try:
        inputs = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        fix = "Write it with numpy.save(FILE, public_inputs)"
        found.append(Problem("quant.calibration", path, f"cannot be read: {error_text(error)}", fix))
        return
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "fiu":
        found.append(Problem("quant.calibration", path, "holds no array of real numbers", "Write it with numpy.save"))
        return
    if inputs.shape[1:] != input_shape or not len(inputs) or not np.isfinite(inputs.astype(np.float32)).all():
        rule = f"must hold finite public inputs of shape (n, {', '.join(map(str, input_shape))}), not {inputs.shape}"
        found.append(Problem("quant.calibration", path, rule, "Save inputs as the data gives them"))


def _rehearse_export(net: nn.Module, dataset: Dataset, skip: Sequence[str]) -> None:
    """Export the untrained model once: a user's model may hold layers that cannot be exported. Raises ExportError."""
    examples = None if dataset.test is None else dataset.test.inputs
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(net, dataset.input_shape, Path(folder) / "model.onnx", skip=skip, examples=examples)


def make_quantized(
    config: Config, net: nn.Module, dataset: Dataset, found: list[Problem], *, exports: bool = True
) -> QuantReport | None:
    """Quantize the model in place; None, with a problem added to `found`, if that fails.

    `exports`: whether this machine exports the model; a client does not, and opens no file for it.
    """
    q = config.quant
    if q.calibration is not None and exports:
        _check_calibration(q.calibration, dataset.input_shape, found)
    try:
        report = quantize(
            net,
            weights=q.weight_bits,
            activations=None if q.activations == "off" else q.activation_bits,
            ranges="fixed" if q.activations == "off" else q.activations,
            granularity=q.granularity,
            rounding=q.weight_rounding,
            weight_range=q.weight_range if q.weight_bits == 8 else None,
            activation_range=q.activation_range,
            input_range=q.input_range,
            skip=tuple(q.skip),
        )
        exported = exports and q.activations not in ("off", "dynamic")
        if exported and not str(config.model.get("_target_")).startswith("fedq.models."):
            _rehearse_export(net, dataset, q.skip)
        return report
    except (ValueError, ExportError) as error:
        found.append(problem(error, key="quant", value=q.name, fix="Use quant=off to train the float model"))
        return None
