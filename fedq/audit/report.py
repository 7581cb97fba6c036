"""The report of an audit: checks, bounds, scores and the verdict. Knows figures; not how they were computed."""

from typing import TYPE_CHECKING

from fedq.audit.findings import LEVEL, Audit, Check
from fedq.core.wording import one_line, plural

if TYPE_CHECKING:
    from rich.console import RenderableType


def audit_table(audit: Audit) -> "RenderableType":
    """The report for a screen of 100 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = {check.name for check in audit.findings}
    parts: list[RenderableType] = [Text(f"audit of {one_line(audit.subject)}", style="bold")]
    if audit.checks:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
        table.add_column("check", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
        table.add_column("seen")
        for check in audit.checks:
            style = "bold red" if check.name in found else ""
            table.add_row(Text(check.name, style), Text(_p(check), style), Text(one_line(check.seen), style))
        parts.append(table)
    for bounds in audit.bounds:
        text = (
            f"{bounds.box}: epsilon is at least {bounds.one_run_curve:.2f} (f-DP) and {bounds.one_run:.2f} (any "
            f"mechanism) of {bounds.claimed_epsilon:.2f} claimed at delta {bounds.delta:g}, "
            f"{bounds.confidence:.0%} sure, from one run with {bounds.canaries:,} canaries"
        )
        if bounds.repeated is not None:
            text += f"; {bounds.repeated:.2f} from {bounds.repeats:,} runs with one canary or none"
        parts.append(Text(text))
    for score in audit.membership:
        parts.append(
            Text(
                f"membership {score.model}: {score.auc:.3f} ({score.low:.3f} to {score.high:.3f}), where 0.5 is "
                f"chance; {plural(score.members, 'member')}, {plural(score.others, 'other')}"
            )
        )
    parts += [Text(f"not looked at: {one_line(reason)}", style="yellow") for reason in audit.left_out]
    parts.append(_verdict(audit))
    return Group(*parts)


def _verdict(audit: Audit) -> "RenderableType":
    from rich.text import Text

    if not audit.checks:
        return Text("no privacy is claimed, so there is nothing to check")
    if not audit.findings:
        return Text(f"nothing found, at a chance of {LEVEL:.0%} to flag a right mechanism; this proves no privacy")
    lines = [f"{plural(len(audit.findings), 'finding')}: the mechanism is not what it claims to be"]
    lines += [f"  {check.name}: it is not so that {check.claim}" for check in audit.findings]
    return Text("\n".join(lines), style="bold red")


def _p(check: Check) -> str:
    if check.p_value in (0.0, 1.0):
        return f"{check.p_value:.0f}"
    return f"{check.p_value:.3f}" if check.p_value >= 0.001 else f"{check.p_value:.0e}"
