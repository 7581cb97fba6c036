"""The report at the end of a run. Knows a result; not how it was computed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING, NamedTuple

from fedq.console.next_steps import next_steps, shown_path
from fedq.core.wording import counts, duration, number, one_line, percent, plural, shares, size, spent, times
from fedq.results.result import ALONE, Result
from fedq.results.rows import bounded

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SOURCES = {
    "server_test": "the server's held-out test set",
    "clients": "the clients' own held-out data",
    "noisy_counts": "the clients' own held-out data, by noisy counts",
    "none": "unnamed data",
}
FILES = {
    "model.onnx": "the int8 model, for onnxruntime",
    "model.safetensors": "the float32 weights, arrays only",
    "result.json": "every number above",
    "rounds.jsonl": "one line a round",
    "curves.png": "the curves",
    "config.yaml": "what was run",
    "PUBLISH.txt": "which of these files the guarantee covers",
    "clients": "what each client keeps: a log; under DP its ledger and evidence",
    "server": "the server's ledger and the log of replies: not for others",
}
_SLOWEST_NAMED = 3  # operators that are named if the int8 model is slower


@dataclass(frozen=True)
class PartCost:
    """The accuracy (0..1) of a run with and without one part; `source`: the runs without it."""

    part: str
    accuracy_without: float
    accuracy_with: float
    source: str


class Line(NamedTuple):
    """One line of a report: label, value, and the meaning of the value."""

    label: str
    value: str
    words: str
    style: str = ""


def final_table(result: Result, costs: Sequence[PartCost] = (), *, overrides: Sequence[str] = ()) -> "RenderableType":
    """The report of a run; `overrides`: the run's own, for the commands to try next."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(no_wrap=True, justify="right")
    facts.add_column()
    for line in [*_ended(result), *_score(result), *_privacy(result), *_traffic(result), *_run(result)]:
        value, words = Text(line.value, style=f"bold {line.style}"), Text(line.words, style=line.style)
        facts.add_row(Text(line.label), value, words)
    parts: list[RenderableType] = [_heading(result), Padding(facts, (0, 0, 0, 1))]
    if costs:
        parts += [_title("what each part cost"), _costs(costs)]
    if result.folder is not None:
        parts += [_title("files"), _files(result)]
    elif result.elsewhere is not None:
        where = Text(f"   {one_line(result.elsewhere, limit=4096)}", overflow="fold")
        parts += [_title("files, on the server's host"), where]
    return Group(*parts, _title("try next"), _commands(result, overrides), Text(""))


def _heading(result: Result) -> "RenderableType":
    from rich.rule import Rule
    from rich.text import Text

    color = "green" if result.status == "finished" else "yellow"
    after = f" {result.status} after {plural(result.rounds, 'round')} in {duration(result.wall_seconds)} "
    title = Text.assemble((f" {one_line(result.name, limit=40)}", "bold"), (after, color))
    return Rule(title, align="left", style=color)


def _title(words: str) -> "Text":
    from rich.text import Text

    return Text(f"\n {words}", style="bold")


def _ended(result: Result) -> list[Line]:
    reason = result.status_reason
    return [Line("stopped", "", f"because {one_line(reason)}", "yellow")] if reason else []


def _score(result: Result) -> list[Line]:
    is_accuracy = result.accuracy is not None
    label = "accuracy" if is_accuracy else one_line(result.metric, limit=20)
    value = percent(result.accuracy, digits=2) if is_accuracy else number(result.metric_value)
    int8 = percent(result.int8_accuracy, digits=2) if is_accuracy else number(result.int8_metric_value)
    has_int8 = bool(result.int8_ops) or result.int8_model_bytes is not None
    model = "fake-quant model" if has_int8 or result.quantized else "float32 model"
    if not is_accuracy and result.metric_value is None:
        return [Line("accuracy", "-", "not evaluated: no test set", "yellow")]
    error = (
        ""
        if result.accuracy_error is None
        else f" ({percent(result.accuracy_error, digits=2)} standard error of the noise alone)"
    )
    lines = [Line(label, value, f"{model}, on {SOURCES[result.accuracy_source]}{error}")]
    lines += [Line("int8", "none", why) for line in result.quantized if (why := line.partition("no int8 model: ")[2])]
    if has_int8:
        ops = f"int8 model, on int8 kernels: {counts(result.int8_ops, empty='NOT ONE')}"
        style = "" if result.int8_ops else "bold red"  # a file with int8 weights may still run in float
        lines.append(Line("int8", int8, f"{ops}; still in float: {counts(result.float_ops)}", style))
    if has_int8 and result.int8_agreement is not None:
        lines.append(Line("", percent(result.int8_agreement, digits=2), "of its answers are the fake-quant model's"))
    if has_int8 and result.int8_speedup is not None and result.int8_speedup < 1:
        slowest = shares(dict(list(result.int8_profile.items())[:_SLOWEST_NAMED]))
        words = "as fast as the same model in float32: int8 does not pay on this machine"
        lines.append(Line("", times(result.int8_speedup), f"{words}; its time goes to {slowest}", "yellow"))
    return lines


def _privacy(result: Result) -> list[Line]:
    if result.epsilon is None:
        return [Line("privacy", "off", "no privacy claimed")]
    delta = "" if result.delta is None else f"at delta {result.delta:.3g}, "
    unit = one_line(result.privacy_unit or "an unnamed unit")
    why = "; ".join(one_line(reason) for reason in result.privacy_reasons) or "no evidence was given"
    private = (
        Line("private", "yes", "all the evidence for it was found", "green")
        if result.private
        else Line("private", "no", f"because {why}", "bold red")
    )
    alone = f"; {ALONE}" if result.epsilon_of == "run" else ""
    lines = [Line("epsilon", spent(result.epsilon), f"{delta}protecting {unit}{alone}")]
    per_client = result.client_level
    if per_client and per_client["unit"] != result.privacy_unit:
        lines.append(
            Line(
                "",
                spent(per_client["epsilon"]),
                f"at delta {per_client['delta']:.3g}, protecting {per_client['unit']}",
            )
        )
    return [*lines, private]


def _traffic(result: Result) -> list[Line]:
    ways = (
        ("sent up", result.bytes_up, result.float32_bytes_up),
        ("sent down", result.bytes_down, result.float32_bytes_down),
    )
    return [
        Line(label, size(sent), f"{percent(sent / plain)} of {size(plain)} as float32" if plain else "")
        for label, sent, plain in ways
    ]


def _run(result: Result) -> list[Line]:
    lines = []
    if result.model_bytes and result.int8_model_bytes is not None:
        share = percent(result.int8_model_bytes / result.model_bytes)
        words = f"int8, {share} of {size(result.model_bytes)} as float32"
        lines.append(Line("model file", size(result.int8_model_bytes), words))
    elif result.model_bytes:
        lines.append(Line("model file", size(result.model_bytes), "float32"))
    codes = sum((Counter(row.reasons) for row in result.history), Counter[str]())
    skipped = sum(row.status == "skipped" for row in result.history)
    why = [
        counts(dict(codes.most_common()), empty=""),
        f"{plural(skipped, 'round')} skipped" if skipped else "",
    ]
    style = "yellow" if result.clients_lost or skipped else ""
    if result.link is not None:
        lines.append(Line("link", "insecure", one_line(result.link).removeprefix("insecure: "), "bold red"))
    lines.append(Line("lost replies", f"{result.clients_lost:,}", "; ".join(filter(None, why)), style))
    if found := bounded(result.history):
        lines.append(Line("bounded replies", f"{sum(found.values()):,}", counts(found, empty=""), "yellow"))
    return lines


def _costs(costs: Sequence[PartCost]) -> "RenderableType":
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    sources = list(dict.fromkeys(one_line(cost.source) for cost in costs))
    table = Table(box=box.SIMPLE_HEAD, header_style="cyan", show_edge=False, padding=(0, 0, 0, 1))
    table.add_column("part")
    for header in ("without", "with", "difference"):
        table.add_column(header, justify="right", no_wrap=True)
    if len(sources) > 1:
        table.add_column("source", style="dim")
    for cost in costs:
        points = 100 * (cost.accuracy_with - cost.accuracy_without)
        table.add_row(
            Text(one_line(cost.part)),
            percent(cost.accuracy_without),
            percent(cost.accuracy_with),
            Text(f"{points:+.1f} points", style="bold"),
            *([Text(one_line(cost.source))] if len(sources) > 1 else []),
        )
    return Group(table, *([Text(f" source: {sources[0]}", style="dim")] if len(sources) == 1 else []))


def _files(result: Result) -> "RenderableType":
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    folder = result.folder
    if folder is None:
        return Text("")
    listed = Table.grid(padding=(0, 2, 0, 0))
    listed.add_column(no_wrap=True)
    listed.add_column(style="dim")
    for name, what in FILES.items():
        if (folder / name).exists():
            listed.add_row(name + "/" * (folder / name).is_dir(), what)
    return Group(Text(f"   {one_line(shown_path(folder))}", overflow="fold"), Padding(listed, (0, 0, 0, 3)))


def _commands(result: Result, overrides: Sequence[str]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = []
    for step in next_steps(result, overrides):
        lines.append(Text(indent(step.command, "   "), style="bold", overflow="fold"))
        lines.append(Text(f"     # {step.why}", style="dim"))
    return Group(*lines)
