"""`fedq privacy`: ledgers, plans, statements. Knows ledgers and run folders; trains nothing."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli.terminal import FAILED, refuse, refuse_text, say, show

if TYPE_CHECKING:
    from fedq.config import Config

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Plans, ledgers and statements of privacy.")
BUDGETS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)


@app.command(short_help="Print and check a ledger, or all below a folder: fedq privacy ledger PATH.")
def ledger(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A ledger, or a folder that holds some.")],
    tip: Annotated[
        Path | None,
        typer.Option(
            "--head", metavar="FILE", help="The ledger's tip, if not beside the ledger; or the folder of head-dir."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All rows, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, one object a ledger.")] = False,
    accept: Annotated[
        str | None, typer.Option(metavar="REASON", help="Your decision that the rows are the account, and why.")
    ] = None,
) -> None:
    """Exit status 0: every ledger passes all checks; 1: one does not.

    A ledger that is shorter than its tip says, or without its tip, is not continued until a person decides: restore
    the right files, or use --accept REASON, which is recorded in the tip. A changed row cannot be accepted.
    """
    from fedq.console.accounts import ledger_table
    from fedq.privacy import Ledger, LedgerError, tip_in
    from fedq.results import strict_json
    from fedq.results.accounts import ledger_json

    found = ledgers_at(path)
    if tip is not None and tip.is_dir():
        tip = tip_in(tip, found[0])
    if len(found) > 1 and (tip is not None or accept is not None):
        refuse_text(f"{path}: holds {len(found)} ledgers. Name one of them")
    broken = False
    for file in found:
        try:
            if accept is not None:
                Ledger(file, tip=tip).accept(accept)
            account = Ledger(file, access="read", tip=tip)
            account.verify()
            rows, decisions = account.rows(), account.tip().accepted
        except (LedgerError, ValueError) as error:
            say(f"fedq: {error}")
            if accept is not None:
                say("--accept changed nothing: it accepts a shorter chain or a lost tip, but no changed row")
            broken = True
            continue
        if as_json:
            typer.echo(strict_json.dumps({"path": str(file), **ledger_json(rows, decisions)}))
        else:
            show(ledger_table(str(file), rows, decisions, every=every))
    if broken:
        sys.exit(FAILED)


def ledgers_at(path: Path) -> list[Path]:
    """The ledger at `path`, or all ledgers below the folder; ends the command if there is none."""
    if path.is_dir():
        from fedq.privacy.ledger import TIP_SUFFIX

        # A ledger may be deleted while its tip is still there.
        tips = {tip.with_suffix("") for tip in path.rglob(f"*.sqlite{TIP_SUFFIX}")}
        found = sorted({*path.rglob("*.sqlite"), *tips})
        if not found:
            refuse_text(f"{path}: holds no ledger (*.sqlite). Name a client's state-dir, or a run's folder")
        return found
    if not path.exists():
        refuse_text(f"{path}: no such file or folder. Name a ledger, a client's state-dir, or a run's folder")
    return [path]


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="The noise that budgets need, before anything is trained: fedq privacy plan [KEY=VALUE ...].",
)
def plan(context: typer.Context) -> None:
    """A table of budgets and their noise, from public numbers (delta, rounds, sampling, participation cap).

    Takes the overrides of `fedq run`; opens no data and trains nothing.
    """
    config = composed(list(context.args))
    from fedq.config.client_level import protects_examples
    from fedq.console.accounts import plan_table

    if config.privacy.unit == "off":
        refuse_text("privacy=off: there is nothing to plan. Add privacy=example or privacy=client")
    from fedq.experiment.trade_off import cost_summary, trade_off

    try:
        rows = trade_off(config, BUDGETS)
        summary = cost_summary(config)
    except (ValueError, ArithmeticError) as error:
        refuse_text(str(error))
    mean = "a step's mean gradient" if protects_examples(config) else "a round's mean update"
    show(plan_table(rows, summary, mean=mean))


@app.command(short_help="The exact claim behind a run's epsilon, in words: fedq privacy statement RUN.")
def statement(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Unit, adjacency, adversary, mechanism, accountant, sampling, epsilon, mu, and what is not covered."""
    from fedq.artifacts.statement import statement_of, statement_text
    from fedq.privacy import LedgerError
    from fedq.results import strict_json

    try:
        found = statement_of(run)
    except (ValueError, OSError, LedgerError) as error:
        refuse_text(str(error))
    width = min(110, max(60, shutil.get_terminal_size((110, 24)).columns - 1))
    typer.echo(strict_json.dumps(found, indent=2) if as_json else statement_text(found, width=width))


def composed(overrides: list[str]) -> "Config":
    """The config of the overrides; ends the command with all problems if there are any."""
    from fedq.config import ConfigError, compose, own_conf, problems

    try:
        config = compose(overrides, overlay=own_conf())
        if found := problems(config):
            raise ConfigError(found)
    except ConfigError as error:
        refuse(error)
    return config
