"""The report of `fedq export`. Knows figures; not how they were measured."""

from typing import TYPE_CHECKING

from fedq.console.report import Line
from fedq.core.wording import counts, number, percent, size, times

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType


def exported_table(
    path: "Path",
    *,
    int8_bytes: int,
    float32_bytes: int,
    metric: str,
    fake_quant: float | None,
    int8: float | None,
    agreement: float | None,
    int8_ops: dict[str, int],
    float_ops: dict[str, int],
    speedup: float | None,
) -> "RenderableType":
    """Size, kernels, score and speed of an int8 model.

    `float32_bytes`: size of model.safetensors. `fake_quant` and `int8` are None without a test set.
    """
    from rich.table import Table
    from rich.text import Text

    def shown(value: float | None) -> str:
        return percent(value, digits=2) if metric.endswith("accuracy") else number(value)

    share = percent(int8_bytes / float32_bytes) if float32_bytes else "-"
    lines = [
        Line("bytes", size(int8_bytes), f"int8, {share} of {size(float32_bytes)} as float32"),
        Line("kernels", "int8", counts(int8_ops, empty="NOT ONE"), "" if int8_ops else "bold red"),
        Line("", "float", counts(float_ops)),
    ]
    if int8 is None:
        lines.append(Line(metric, "-", "not measured: this machine holds no test set", "yellow"))
    else:
        lines.append(Line(metric, shown(fake_quant), "fake-quant model, on the test set"))
        lines.append(Line("", shown(int8), "int8 model, on int8 kernels"))
    if agreement is not None:
        lines.append(Line("", percent(agreement, digits=2), "of its answers are the fake-quant model's"))
    if speedup is not None:
        lines.append(Line("speed", times(speedup), "as fast as the same model in float32, on this machine"))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(no_wrap=True, justify="right")
    facts.add_column()
    facts.title, facts.title_justify, facts.title_style = Text(str(path), overflow="fold"), "left", "bold"
    for line in lines:
        facts.add_row(f" {line.label}", Text(line.value, style=f"bold {line.style}"), Text(line.words, line.style))
    return facts
