"""The table of `fedq run --dry-run`. Knows the figures of a forecast; not how they were computed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedq.core.wording import percent, plural, size, spent
from fedq.results.forecast import Forecast

if TYPE_CHECKING:
    from rich.console import RenderableType


def forecast_table(forecast: Forecast, *, held: Sequence[tuple[str, str]] = ()) -> "RenderableType":
    """All that is known before the first round; `held`: (epsilon, what it is) of what ledgers hold already."""
    from rich.table import Table

    f = forecast
    table = Table.grid(padding=(0, 2, 0, 1))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column()
    table.add_row("forecast", f.name, "nothing was trained, no folder was made")
    asked = f"{f.cohort} of {plural(f.clients, 'client')} in each, any of them in at most {f.participations}"
    table.add_row("rounds", str(f.rounds), asked)
    table.add_row("model", f"{f.parameters:,}", "parameters")
    for way, sent, plain in (
        ("up", f.bytes_up, f.float32_bytes_up),
        ("down", f.bytes_down, f.float32_bytes_down),
    ):
        share = f"{percent(sent / plain)} of {size(plain)} with float32 packets, if every client answers"
        table.add_row(way, size(sent), share)
    per_client = f.client_level
    if f.epsilon is None and per_client is None:
        table.add_row("privacy", "off", "no privacy claimed")
    if f.epsilon is not None:
        noise = f"noise multiplier {f.noise_multiplier:.4g}, rate {f.sample_rate:.4g}, {f.steps} steps a participation"
        table.add_row("epsilon", spent(f.epsilon), f"at delta {f.delta:g}, for each client's examples")
        table.add_row("", "", noise)
    if per_client is not None:
        table.add_row(
            "epsilon",
            spent(per_client.epsilon),
            f"at delta {per_client.delta:g}, client-level DP; trusts the server",
        )
        counted = f"rate {per_client.sample_rate:.4g}, {plural(per_client.rounds, 'round')} count against one client"
        table.add_row("", "", f"noise multiplier {per_client.noise_multiplier:.4g}, {counted}")
        table.add_row(
            "", "", f"the noise on a mean update is {per_client.noise_norm:.3g} times as long as the clip norm"
        )
    table.add_row("memory", size(f.memory_bytes), "of arrays at the peak of a process, beside its libraries")
    for number, (epsilon, text) in enumerate(held):
        table.add_row("" if number else "in ledgers", epsilon, text)
    return table
