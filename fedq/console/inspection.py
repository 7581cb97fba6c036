"""The report of `fedq inspect`: two tables and advice. Knows figures; not how they were measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fedq.core.wording import one_line, percent, plural, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedq.quant.inspection import GridView, Inspection, LayerView, WeightView

BARS = "▁▂▃▄▅▆▇█"
LONG_NAME = 12  # longest layer name for which a table of 80 columns has room, beside ranges
SMALL_ERROR = 0.01  # own error below which no change is advised
OFTEN_CLIPPED, HALF_USED = 0.001, 0.5
MOST = 0.7  # weights are the cause if they alone have this share of a layer's own error


@dataclass(frozen=True)
class Inspected:
    """The inspected run, its inputs, and the options that the advice refers to."""

    run: str
    inputs: str  # "256 examples of the server's test set"
    note: str | None  # a warning about the inputs
    file_bytes: int | None  # size of model.onnx, if the run has one
    input_range: float
    activation_range: float
    skip: tuple[str, ...]
    left_float: Mapping[str, str] = field(default_factory=dict)  # name of a layer -> why it is not quantized


def inspection_json(found: "Inspection", about: Inspected) -> dict[str, Any]:
    """The inspection as JSON values."""
    worst = found.worst
    return {
        "run": about.run,
        "inputs": about.inputs,
        "examples": found.examples,
        "note": about.note,
        "layers": [{**asdict(layer), "bytes": layer.bytes} for layer in found.layers],
        "left_float": dict(about.left_float),
        "parameters": found.parameters,
        "int8_bytes": found.int8_bytes,
        "float32_bytes": found.float32_bytes,
        "file_bytes": about.file_bytes,
        "loses_most": {"layer": worst.name, "own_error": worst.own_error, "try": remedies(found, about)},
        "summary": summary(found, about),
    }


def inspection_table(found: "Inspection", about: Inspected) -> "RenderableType":
    """The inspection for a screen of 100 columns."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    file = "" if about.file_bytes is None else f" (model.onnx: {size(about.file_bytes)})"
    share = percent(found.int8_bytes / found.float32_bytes) if found.float32_bytes else "-"
    totals = (
        f" {plural(found.parameters, 'parameter')}: {size(found.int8_bytes)}, "
        f"{share} of {size(found.float32_bytes)} as float32{file}"
    )
    lines: list[RenderableType] = [
        Text(f" {one_line(about.run, limit=4096)}", style="bold", overflow="fold"),
        Text(f" on {about.inputs}" + ("" if about.note is None else f": {about.note}")),
        Text("\n weights", style="bold"),
        _weights(found),
        Text(totals),
        *(Text(f" {one_line(name)} stays float: {one_line(why)}") for name, why in about.left_float.items()),
        Text("\n activations and errors", style="bold"),
        _errors(found),
        Text(" clipped: beyond the ends of the grid; used: largest value over the end of the grid", style="dim"),
        Text(" own: this layer alone in integers; sum: all up to here; each against the float model", style="dim"),
        Padding(Text(summary(found, about), style="bold"), (1, 0, 0, 1)),
    ]
    return Group(*lines)


def sparkline(counts: Sequence[int]) -> str:
    """A bar for each count, a blank for 0. The middle, where pruned weights are, does not set the scale."""
    middle = len(counts) // 2
    most = max((c for i, c in enumerate(counts) if i != middle), default=0) or max(counts, default=0)
    top = len(BARS) - 1
    return "".join(BARS[min(top, math.ceil(top * c / most))] if c else " " for c in counts) if most else ""


def summary(found: "Inspection", about: Inspected) -> str:
    """The layer with the largest error, its cause, and what to try."""
    worst = found.worst
    loss = percent(worst.own_error)
    name = one_line(worst.name or "the model")
    if worst.own_error < SMALL_ERROR:
        return f"No layer loses much: {name} most, {loss} of its output. There is nothing to fix."
    why = _cause(worst)
    tries = remedies(found, about)
    return f"{name} loses most by itself, {loss} of its output: {why}. Try {one_line(' or '.join(tries))}."


def remedies(found: "Inspection", about: Inspected) -> list[str]:
    """Overrides that remove the cause of the largest error, the cheapest first; the last keeps the layer float."""
    layer = found.worst
    if layer.own_error < SMALL_ERROR:
        return []
    tries: list[str] = []
    if _by_weights(layer):
        tries += ["quant.weight_bits=8"] if layer.bits != 8 else []
    else:
        grid = _worst_grid(layer)
        if grid is not None and grid.high is not None and (grid.clipped > OFTEN_CLIPPED or grid.used < HALF_USED):
            tries += _other_range(grid, found, about)
            tries += ["quant.activations=learned"] if grid.kind == "fixed" else []
        tries += ["quant.activation_bits=8"] if any(g.bits < 8 for g in layer.grids) else []
    return [*tries, f"quant.skip=[{','.join([*about.skip, layer.name])}]"]


def _other_range(grid: "GridView", found: "Inspection", about: Inspected) -> list[str]:
    """An override for the range that all grids of one option need; [] if their range is already close."""
    key = _key(grid, about)
    shared = [g for layer in found.layers for g in layer.grids if key is not None and _key(g, about) == key]
    needed = max((g.high * g.used for g in shared if g.high is not None), default=0.0)
    if grid.high is None or needed <= 0 or HALF_USED <= needed / grid.high <= 1:
        return []
    return [f"{key}={_rounded_up(needed):g}"]


def _cause(layer: "LayerView") -> str:
    if _by_weights(layer):
        return f"rounding its weights to {_bits(layer)} alone costs {percent(layer.weights_error)}"
    grid = _worst_grid(layer)
    if grid is None or grid.high is None or grid.low is None:
        return "its activations are rounded too coarsely"
    ends = f"{grid.role} grid [{grid.low:.4g}, {grid.high:.4g}]"
    if grid.clipped > OFTEN_CLIPPED:
        return f"{percent(grid.clipped)} of the values lie beyond its {ends}"
    if grid.used < HALF_USED:
        return f"only {percent(grid.used)} of its {ends} is used"
    return f"its {ends} has {2**grid.bits} levels, too few for it"


def _bits(layer: "LayerView") -> str:
    return "three levels" if layer.bits == 2 else f"{layer.bits} bits"


def _by_weights(layer: "LayerView") -> bool:
    return not layer.grids or layer.weights_error >= MOST * layer.own_error


def _worst_grid(layer: "LayerView") -> "GridView | None":
    """The grid that clips most, or else is used least."""
    ranged = [grid for grid in layer.grids if grid.role != "chances"]
    return max(ranged, key=lambda grid: (grid.clipped, -grid.used), default=None)


def _key(grid: "GridView", about: Inspected) -> str | None:
    """The option that sets this grid's range; None for a natural bound or a learned range."""
    if grid.kind != "fixed" or grid.high is None:
        return None
    if grid.role == "input" and math.isclose(grid.high, about.input_range, rel_tol=1e-5):
        return "quant.input_range"
    return "quant.activation_range" if math.isclose(grid.high, about.activation_range, rel_tol=1e-5) else None


def _rounded_up(value: float) -> float:
    """The value rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


def _table(*headers: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="cyan", show_edge=False, padding=(0, 0, 0, 1), pad_edge=True)
    for header in headers:
        left = header in ("layer", "kind", "levels", "shape", "input", "output")
        table.add_column(header, justify="left" if left else "right", no_wrap=header != "layer", overflow="fold")
    return table


def _numbers(found: "Inspection") -> dict[str, str]:
    """Layer -> its number in the tables, if names are long; else {}."""
    names = [layer.name for layer in found.layers]
    numbered = max(map(len, names), default=0) > LONG_NAME
    return {name: str(number) for number, name in enumerate(names, start=1)} if numbered else {}


def _weights(found: "Inspection") -> "RenderableType":
    numbers = _numbers(found)
    table = _table(*["nr"][: len(numbers)], "layer", "kind", "bits", "shape", "zeros", "levels", "bytes")
    for layer in found.layers:
        number = [numbers[layer.name]] if numbers else []
        name = one_line(layer.name)
        if layer.bits is None:
            shapes = ", ".join(map(_shape, layer.weights))
            table.add_row(*number, name, layer.kind, "float", shapes, "", "", f"{layer.bytes:,}")
            continue
        bits = "ternary" if layer.bits == 2 else str(layer.bits)
        several = len(layer.weights) > 1
        if several:
            table.add_row(*number, name, layer.kind, bits, "", "", "", f"{layer.bytes:,}")
        for weight in layer.weights:
            inner = one_line("  " + weight.name.removeprefix(f"{layer.name}."))
            first = (inner, "", "") if several else (name, layer.kind, bits)
            bars = sparkline(weight.histogram)
            nr = [""] * len(number) if several else number
            table.add_row(*nr, *first, _shape(weight), percent(weight.zeros), bars, f"{weight.bytes:,}")
    return table  # type: ignore[no-any-return]


def _shape(weight: "WeightView") -> str:
    tied = "" if weight.tied_to is None else f" = {one_line(weight.tied_to)}"
    return "x".join(map(str, weight.shape)) + tied


def _errors(found: "Inspection") -> "RenderableType":
    from rich.text import Text

    by_name, numbers, figures = {layer.name: layer for layer in found.layers}, _numbers(found), ("clipped", "used")
    table = _table("nr" if numbers else "layer", "input", *figures, "output", *figures, "own", "sum", "")
    for layer in found.layers:
        grids = {grid.role: grid for grid in layer.grids}
        worst = layer is found.worst and layer.own_error >= SMALL_ERROR
        source = by_name.get(layer.source) if layer.source is not None else None
        read = next((g for g in source.grids if g.role == "output"), None) if source is not None else None
        before = [_range(read), "", ""] if read is not None else _figures(grids.get("input"))
        after = _figures(grids.get("output", grids.get("hidden")))
        own = "" if layer.bits is None else percent(layer.own_error)
        marked = Text("<" if worst else "", style="bold red")
        style = "bold red" if worst else ""
        table.add_row(
            numbers.get(layer.name, one_line(layer.name)),
            *before,
            *after,
            Text(own, style=style),
            percent(layer.error),
            marked,
            style=style,
        )
        if (chances := grids.get("chances")) is not None:
            table.add_row("  chances", "", "", "", *_figures(chances), "", "", "")
    return table  # type: ignore[no-any-return]


def _figures(grid: "GridView | None") -> list[str]:
    return ["float", "", ""] if grid is None else [_range(grid), percent(grid.clipped), percent(grid.used, digits=0)]


def _range(grid: "GridView") -> str:
    return "dynamic" if grid.low is None or grid.high is None else f"[{grid.low:.3g}, {grid.high:.3g}]"
