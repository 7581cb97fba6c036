"""`fedq audit RUN|CONFIG`: tests the privacy claim of a mechanism. Knows arguments; not the checks.

Exit statuses: 0 nothing found; 1 a finding; 2 refused before it started.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli.foreign import Allow, allowed, print_named_files
from fedq.cli.terminal import FAILED, refuse, refuse_text, show

if TYPE_CHECKING:
    from fedq.audit import Audit, Effort
    from fedq.config import Config

MOST_CANARIES, MOST_PAIRS, MOST_SEEDS, MOST_REPEATS = 100_000, 1_000_000, 20, 100_000


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        short_help="Look for a mechanism that is less private than it claims: fedq audit RUN, or KEY=VALUE ...",
    )(audit)


def audit(
    context: typer.Context,
    canaries: Annotated[int, typer.Option(metavar="N", help="Canaries in the one run that bounds epsilon.")] = 4000,
    pairs: Annotated[int, typer.Option(metavar="N", help="Pairs of neighbours under the same randomness.")] = 1_000,
    seeds: Annotated[int, typer.Option(metavar="N", help="Audits, each with its own coins and pairs.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs with one canary or none, for a further bound.")] = 0,
    black_box: Annotated[
        int, typer.Option(metavar="N", help="Canaries in the data of one client over all rounds.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
    allow: Allow = None,
) -> None:
    """Audit the client of a finished run (its folder, or its config.yaml), or of a config (KEY=VALUE as of fedq run).

    Computes a lower bound on epsilon from one training run with canaries, and checks that neighbouring data change
    only what they may. A finished run's model also gets a membership score, before and after int8. An audit without
    findings does not prove privacy. Models and data that are not fedq's own need --allow MODULE.
    """
    _check(canaries=canaries, pairs=pairs, seeds=seeds, repeats=repeats, black_box=black_box)
    from fedq.audit import Audit, AuditError, Effort, audit_table
    from fedq.config import ConfigError
    from fedq.results import strict_json
    from fedq.training.numerics import one_thread

    effort = Effort(canaries=canaries, pairs=pairs, seeds=seeds, repeats=repeats, black_box=black_box)
    flags = [argument for argument in context.args if argument.startswith("-")]
    if flags:
        refuse_text(
            f"{flags[0]}: no option of fedq audit. It has --canaries, --black-box, --repeats, --pairs, --seeds, "
            "--allow, --json"
        )
    modules = allowed(allow)
    try:
        with one_thread(), _progress() as tell:
            run = _run(context.args)
            found: Audit = (
                _of_config(context.args, modules, effort, tell) if run is None else _of_run(run, modules, effort, tell)
            )
    except ConfigError as error:
        refuse(error)
    except (AuditError, ValueError, OSError) as error:
        refuse_text(str(error))
    if as_json:
        typer.echo(strict_json.dumps(found.to_json(), indent=2))
    else:
        show(audit_table(found))
    if found.findings:
        sys.exit(FAILED)


def _check(*, canaries: int, pairs: int, seeds: int, repeats: int, black_box: int) -> None:
    for name, value, least, most in (
        ("--canaries", canaries, 200, MOST_CANARIES),
        ("--pairs", pairs, 1, MOST_PAIRS),
        ("--seeds", seeds, 1, MOST_SEEDS),
        ("--repeats", repeats, 0, MOST_REPEATS),
        ("--black-box", black_box, 0, MOST_CANARIES),
    ):
        if not least <= value <= most:
            refuse_text(f"{name} {value}: must be {least} to {most:,}")


def _run(arguments: list[str]) -> Path | None:
    """The run folder or config file in the arguments; None if they are overrides."""
    if len(arguments) != 1 or "=" in arguments[0]:
        named = [a for a in arguments if "=" not in a]
        if named:
            refuse_text(f"{named[0]}: give one run's folder or config.yaml, or KEY=VALUE overrides, not both")
        return None
    path = Path(arguments[0])
    if not path.exists():
        refuse_text(f"{path}: no such run. Give a folder that fedq run made, its config.yaml, or KEY=VALUE overrides")
    return path


def _of_config(
    overrides: list[str], modules: tuple[str, ...], effort: "Effort", tell: Callable[[str], None]
) -> "Audit":
    from fedq.config import compose, own_conf
    from fedq.config.untrusted import check_folder

    overlay = own_conf()
    if overlay is not None:
        check_folder(overlay)
    checked = compose(overrides, overlay=overlay)
    if checked.privacy.unit == "off":
        refuse_text("privacy=off claims nothing. Use privacy=example, or give a finished run for its membership score")
    left_out = ["membership: nothing was trained; give the folder of a finished run"]
    return _mechanism(checked, " ".join(overrides) or "the default config", modules, effort, tell, left_out=left_out)


def _of_run(path: Path, modules: tuple[str, ...], effort: "Effort", tell: Callable[[str], None]) -> "Audit":
    from fedq.audit import Audit, account_check, membership_scores
    from fedq.config.config_file import read_config
    from fedq.experiment.rebuild import finished_run

    if path.is_file():
        config = read_config(path)
        if config.privacy.unit == "off":
            refuse_text(f"{path}: privacy=off claims nothing. Give the run's folder for its membership score")
        left_out = ["membership: give the folder of a finished run"]
        return _mechanism(config, str(path), modules, effort, tell, left_out=left_out)
    run = finished_run(path)
    tell("membership scores")
    scores, left_out = membership_scores(run.experiment(allow=modules), path)
    if run.config.privacy.unit == "off":
        return Audit(
            str(path), [], membership=scores, left_out=[*left_out, "the mechanism: privacy=off claims nothing"]
        )
    found = _mechanism(run.config, str(path), modules, effort, tell, left_out=left_out)
    account, unknown = account_check(path, run.result)
    checks = found.checks if account is None else [*found.checks, account]
    return replace(found, checks=checks, membership=scores, left_out=[*found.left_out, *unknown])


def _mechanism(
    config: "Config",
    subject: str,
    modules: tuple[str, ...],
    effort: "Effort",
    tell: Callable[[str], None],
    *,
    left_out: list[str],
) -> "Audit":
    from fedq.audit import Audit, audit_mechanism
    from fedq.config.schema import Runtime
    from fedq.experiment import build

    # The run's ledgers are not opened: nothing that an audit computes leaves the client.
    here = replace(config, runtime=Runtime(), privacy=replace(config.privacy, ledger=None))
    print_named_files(here)
    checks, bounds, not_looked_at = audit_mechanism(build(here, allow=modules), effort, tell=tell)
    return Audit(subject, checks, bounds, left_out=[*left_out, *not_looked_at])


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A status line in a terminal; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("audit") as status:
        yield lambda text: status.update(f"audit: {text}")
