"""`fedq client`: the status of a client for its data owner. Knows its folder; opens no data."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli.terminal import refuse, refuse_text, show

if TYPE_CHECKING:
    from fedq.results.accounts import Released

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="For the owner of a client's data.")
DECLINED_SHOWN = 5


@app.command(short_help="Your client's spends by run, and the data that left: fedq client status STATE-DIR.")
def status(
    state: Annotated[Path, typer.Argument(metavar="STATE-DIR", help="The state-dir of the client's node config.")],
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="The policy file of its node config.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="The epsilon of its node config: its own budget.")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of its node config (1e-5 beside an epsilon).")] = None,
    head_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="The head-dir of its node config.")] = None,
) -> None:
    """Spends by run, data that left this machine, and the rest of the budget."""
    from fedq.client.state import DECLINED
    from fedq.config import ConfigError
    from fedq.config.budgets import own_delta, own_limit_problems
    from fedq.console.accounts import status_table
    from fedq.experiment.ledgers import LEDGER
    from fedq.privacy import (
        Ledger,
        LedgerError,
        PolicyError,
        is_begun,
        is_coarse,
        limits,
        read_policy,
        tip_of,
        unaccounted_units,
    )
    from fedq.results.accounts import ClientStatus, by_run, total

    if found := list(own_limit_problems(epsilon, delta, where="--")):
        refuse(ConfigError(found))
    if not state.is_dir():
        refuse_text(f"{state}: no such folder. Name the state-dir of the client's node config")
    try:
        accepts = None if policy is None else read_policy(policy)
        path = state.absolute() / LEDGER
        tip = tip_of(path, accepts, head_dir)
        rows = Ledger(path, access="read", tip=tip).rows() if is_begun(path, tip=tip) else []
    except (LedgerError, PolicyError) as error:
        refuse_text(str(error))
    # The stricter of node config and policy, as in the client itself.
    budget, counted_at = limits(accepts, epsilon, own_delta(epsilon, delta))
    spent_in_all, at = total(rows, delta=counted_at)
    runs, older = by_run(rows, delta=counted_at)
    declined = state / DECLINED
    lines = declined.read_text(encoding="utf-8").splitlines() if declined.exists() else []
    show(
        status_table(
            ClientStatus(
                path=str(state),
                data=rows[0].spend.data if rows else "",
                epsilon=spent_in_all,
                delta=at if counted_at is None else counted_at,
                budget=None if budget is None or math.isinf(budget) else budget,
                source="your budget" if budget == epsilon else "your policy's",
                floor=None if accepts is None else accepts.max_epsilon,
                unaccounted_units=[] if epsilon is not None or delta is not None else unaccounted_units(accepts),
                coarse=is_coarse([row.spend.as_mechanism() for row in rows]),
                tip=None if tip is None else str(tip),
                runs=runs,
                older_runs=older,
                released=dict(_released(state / "runs")),
                declined=lines[-DECLINED_SHOWN:],
                declined_count=len(lines),
            )
        )
    )


@app.command(short_help="The digest of a bundle, for the policy file that names it: fedq client digest APP.fab.")
def digest(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .fab file, or the folder it was unpacked into.")],
) -> None:
    """Print the digest of a bundle that you have reviewed. In `bundles` of your policy it bars other code."""
    import zipfile

    from fedq.app.bundle import bundle_digest

    if not bundle.exists():
        refuse_text(f"{bundle}: no such file or folder. Name a .fab file, or the folder it was unpacked into")
    try:
        typer.echo(bundle_digest(bundle))
    except (OSError, zipfile.BadZipFile) as error:
        refuse_text(f"{bundle}: not a bundle ({error}). `flwr build` makes one")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    short_help="flower-supernode, with messages answered sooner: fedq client node --superlink HOST:9092 ...",
)
def node(context: typer.Context) -> None:
    """Run `flower-supernode` with the same arguments; no message starts a program (docs/deploy.md)."""
    from fedq.app.warm.node import run_node

    try:
        status = run_node(context.args)
    except ValueError as error:
        refuse_text(str(error))
    raise typer.Exit(status)


def _released(runs: Path) -> "Iterator[tuple[str, Released]]":
    """(run, data that left the client) from the client's own logs."""
    from fedq.client.state import LOG
    from fedq.results.accounts import Released

    for folder in sorted(runs.glob("*")):
        log = folder / LOG
        if log.is_file():
            text = log.read_text(encoding="utf-8")
            sizes = [int(n) for n in re.findall(r"^round=\d+ examples=.* packet_bytes=(\d+)$", text, re.MULTILINE)]
            asked = re.findall(r"^round=\d+ evaluated=\d+ (\w+)=", text, re.MULTILINE)
            counts = asked.count("noisy_right")
            yield folder.name, Released(len(sizes), sum(sizes), counts, len(asked) - counts)
