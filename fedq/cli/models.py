"""`fedq export` and `fedq inspect`, for the model of a finished run. Knows run folders; not runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli.foreign import Allow, allowed, print_named_files
from fedq.cli.terminal import FAILED, refuse, refuse_text, say, show

if TYPE_CHECKING:
    import torch

    from fedq.experiment import Experiment
    from fedq.experiment.rebuild import FinishedRun

FORMATS = ("onnx",)
MOST_EXAMPLES = 256  # largest number of examples of an inspection
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, or its model.onnx or model.safetensors.")]


def add_to(app: typer.Typer) -> None:
    """Add the two commands to the app."""
    app.command(short_help="Write and measure the int8 model of a finished run again: fedq export RUN.")(export)
    app.command(short_help="Look inside a run's model, layer by layer: fedq inspect RUN.")(inspect)


def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", help="File format: onnx.")] = "onnx",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Output file; by default RUN/model.onnx.")] = None,
    allow: Allow = None,
) -> None:
    """Write the int8 model of a finished run again, and measure it on int8 kernels.

    The experiment is rebuilt from RUN/config.yaml and RUN/model.safetensors; nothing is trained. The file is
    kept only if its answers equal those of the fake-quant model. Models and data of others need --allow MODULE.
    """
    if form not in FORMATS:
        refuse_text(f"--format {form}: not a format of fedq. Use --format {FORMATS[0]}")
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        refuse_text(f"--output {output}: not a file in a folder that exists. Name one, such as model.onnx")
    path = run / "model.onnx" if output is None else output
    finished, experiment = _rebuilt(run, allow)
    if experiment.config.quant.activations == "off":
        refuse_text(f"{run}: quant.activations=off, and no int8 kernel takes floats. Use a run with 8-bit activations")
    from fedq.artifacts.int8_model import quantized_lines, ranges_missing, write_int8_model
    from fedq.console.exported import exported_table
    from fedq.training.numerics import one_thread

    if ranges_missing(experiment):
        refuse_text(f"{run}: {quantized_lines(experiment)[-1]}")
    with one_thread():
        try:
            found = write_int8_model(experiment, path)
        except OSError as error:
            refuse_text(f"{path}: cannot be written ({error.strerror or error}). Name another --output FILE")
        if "error" in found:
            say(f"fedq: {found['error']}")
            sys.exit(FAILED)
    show(
        exported_table(
            path,
            int8_bytes=found["bytes"],
            float32_bytes=(finished.folder / "model.safetensors").stat().st_size,
            metric=experiment.config.train.metric,
            fake_quant=found.get("fake_quant"),
            int8=found.get("value"),
            agreement=found.get("agreement"),
            int8_ops=found["int8_ops"],
            float_ops=found["float_ops"],
            speedup=found.get("speedup"),
        )
    )


def inspect(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
    allow: Allow = None,
) -> None:
    """For each layer: integers, ranges, saturation, and the error of the int8 model against the float model."""
    folder = model.parent if model.name in ("model.onnx", "model.safetensors") else model
    finished, experiment = _rebuilt(folder, allow)
    from fedq.artifacts.int8_model import exported_model
    from fedq.console.inspection import Inspected, inspection_json, inspection_table
    from fedq.quant import ExportError
    from fedq.quant.inspection import inspect as look
    from fedq.results import strict_json
    from fedq.training.numerics import one_thread

    inputs, source, note = _inputs(finished, experiment)
    quant, onnx = experiment.config.quant, folder / "model.onnx"
    with one_thread():
        try:
            found = look(exported_model(experiment), inputs)
        except (ValueError, ExportError) as error:
            refuse_text(f"{folder}: {error}")
    about = Inspected(
        run=str(folder),
        inputs=source,
        note=note,
        file_bytes=onnx.stat().st_size if onnx.is_file() else None,
        input_range=quant.input_range,
        activation_range=quant.activation_range,
        skip=tuple(quant.skip),
        left_float=experiment.quantized.left_float if experiment.quantized is not None else {},
    )
    if as_json:
        typer.echo(strict_json.dumps(inspection_json(found, about), indent=2))
    else:
        show(inspection_table(found, about))


def _rebuilt(folder: Path, allow: list[str] | None) -> "tuple[FinishedRun, Experiment]":
    """The run and its experiment; ends the command if they cannot be built."""
    modules = allowed(allow)
    from fedq.config import ConfigError
    from fedq.experiment.rebuild import finished_run

    try:
        finished = finished_run(folder)
        if finished.config.quant.name == "off":
            refuse_text(f"{folder}: a run with quant=off, whose model has no integers. Use one with quant=int8")
        print_named_files(finished.config)
        return finished, finished.experiment(allow=modules)
    except ConfigError as error:
        refuse(error)
    except (ValueError, OSError) as error:
        refuse_text(str(error))


def _inputs(finished: "FinishedRun", experiment: "Experiment") -> "tuple[torch.Tensor, str, str | None]":
    """(inputs, their source in words, a warning or None)."""
    import torch

    data, private = experiment.dataset, finished.config.privacy.unit != "off"
    name, examples, note = "test", data.test, "test data, which is not private data" if private else None
    if examples is None:
        name, examples = "validation", data.validation
        note = "held-out data, which no client trained on" if private else None
    if examples is None:
        name, examples = "training", data.train
        note = "private data, and these figures are not covered by the run's epsilon" if private else None
    inputs = torch.from_numpy(examples.inputs[:MOST_EXAMPLES])
    return inputs, f"{len(inputs)} of {len(examples):,} {name} examples", note
