"""Plots a result with matplotlib. Never uses pyplot, whose global state belongs to the user."""

import io
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedq.core.wording import duration, one_line, percent, plural, size, spent
from fedq.results.rows import RoundRow

if TYPE_CHECKING:  # a result draws itself by this module
    from fedq.results.result import Result

# Okabe and Ito's palette: distinct for every kind of colour vision, and by lightness in print.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A"
INK, SOFT, FAINT = "#222222", "#555555", "#DDDDDD"


class Curves(Figure):
    """A figure that a notebook displays even if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return png(self)


def figure(result: "Result") -> Figure:
    """A figure with panels: score, bytes against float32, and epsilon if DP is on."""
    panels: list[Callable[[Axes, Result], None]] = [_score, _bytes]
    if any(row.epsilon is not None for row in result.history):
        panels.append(_epsilon)
    drawn = Curves(
        figsize=(4.3 * len(panels) + 0.4, 3.7),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
        facecolor="white",
    )
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _frame(axis)
        panel(axis, result)
        _rounds(axis, result.history)
    name, facts = _headline(result)
    drawn.suptitle(f"{name}\n ", x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    # The second line is drawn on the blank line of the title.
    drawn.text(0.012, 1 - 0.41 / drawn.get_figheight(), facts, ha="left", va="center", fontsize=9.5, color=SOFT)
    return drawn


def png(drawn: Figure) -> bytes:
    """The figure as a PNG without software or date stamps."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _headline(result: "Result") -> tuple[str, str]:
    facts = [plural(result.rounds, "round"), duration(result.wall_seconds), f"seed {result.seed}"]
    if result.status != "finished":
        facts.insert(0, result.status)
    return f"{one_line(result.name, limit=40)}: {result.score()}", ", ".join(facts)


def _frame(axis: Axes) -> None:
    axis.set_facecolor("white")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(colors=INK, labelsize=9)
    axis.grid(axis="y", color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)


def _rounds(axis: Axes, rows: Sequence[RoundRow]) -> None:
    last = max((row.round for row in rows), default=0)
    axis.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
    axis.set_xlabel("round", fontsize=10, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=10.5, color=INK, pad=8)


def _line(
    axis: Axes,
    rows: Sequence[RoundRow],
    value: Callable[[RoundRow], float | None],
    color: str,
    label: str,
    style: str,
) -> bool:
    points = [(row.round, y) for row in rows if (y := value(row)) is not None]
    if not points:
        return False
    few = len(points) <= 12
    axis.plot(
        *zip(*points, strict=True),
        style,
        color=color,
        label=label,
        linewidth=1.8,
        marker="o" if few else "",
        markersize=4,
    )
    return True


def _score(axis: Axes, result: "Result") -> None:
    rows = result.history
    drawn = _line(
        axis,
        rows,
        lambda r: r.accuracy,
        BLUE,
        "test" if result.accuracy_source != "clients" else "clients' held-out",
        "-",
    )
    drawn |= _line(axis, rows, lambda r: r.validation_accuracy, ORANGE, "validation", "--")
    if drawn:
        _title(axis, "Accuracy")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
        if result.int8_accuracy is not None and rows:
            axis.plot(
                rows[-1].round,
                result.int8_accuracy,
                "D",
                color=RED,
                markersize=6,
                clip_on=False,
                label=f"int8 model, {percent(result.int8_accuracy)}",
                zorder=5,
            )
    elif _line(axis, rows, lambda r: r.metric_value, BLUE, "test", "-"):
        _title(axis, one_line(result.metric, limit=30))
    else:
        drawn = _line(axis, rows, lambda r: r.loss, BLUE, "test", "-")
        drawn |= _line(axis, rows, lambda r: r.train_loss, GREY, "training", "--")
        _title(axis, "Loss")
        if not drawn:
            axis.text(0.5, 0.5, "not evaluated", transform=axis.transAxes, ha="center", color=GREY, fontsize=10)
            axis.set_yticks([])
    skipped = [row.round for row in rows if row.status == "skipped"]
    for i, at in enumerate(skipped):
        axis.axvline(at, color=FAINT, linewidth=2.5, zorder=0, label="skipped round" if i == 0 else None)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", loc="best", labelcolor=INK)


def _bytes(axis: Axes, result: "Result") -> None:
    _title(axis, "Bytes sent, up and down together")
    at = [row.round for row in result.history]
    sent = list(accumulate(row.bytes_up + row.bytes_down for row in result.history))
    plain = list(accumulate(row.float32_bytes_up + row.float32_bytes_down for row in result.history))
    marker = "o" if len(at) <= 12 else ""
    axis.plot(at, plain, "--", color=GREY, linewidth=1.8, marker=marker, markersize=4, label="as float32")
    share = f", {percent(sent[-1] / plain[-1])} of it" if plain and plain[-1] else ""
    axis.plot(at, sent, "-", color=GREEN, linewidth=1.8, marker=marker, markersize=4, label=f"this run{share}")
    axis.set_ylim(bottom=0, top=1.3 * max([1, *plain, *sent]))  # room for the legend above the lines
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: size(round(y)).replace(".00", "").replace(".0 ", " ")))
    axis.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", loc="upper left", labelcolor=INK)


def _epsilon(axis: Axes, result: "Result") -> None:
    of = "of this run alone" if result.epsilon_of == "run" else "spent, largest of all clients"
    _title(axis, f"Privacy: epsilon {of}")
    points = [(row.round, row.epsilon) for row in result.history if row.epsilon is not None]
    points = [(0, 0.0), *points] if points[0][0] > 0 else points  # nothing is spent before the first round
    axis.step(*zip(*points, strict=True), where="post", color=BLUE, linewidth=1.8)
    delta = "" if result.delta is None else f" at delta {result.delta:.3g}"
    note = f"{spent(points[-1][1])}{delta}" + ("" if result.private else "\nNOT private, see result.json")
    axis.plot(*points[-1], "o", color=BLUE, markersize=5, clip_on=False)
    axis.text(0.03, 0.97, note, transform=axis.transAxes, va="top", fontsize=9, color=INK if result.private else RED)
    axis.set_ylim(bottom=0, top=1.25 * max(y for _, y in points) or 1)
