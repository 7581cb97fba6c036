"""The command line: `fedq run`, `new`, `deploy`. Knows arguments, exit statuses and the terminal; not runs.

The module `models` has `fedq export` and `fedq inspect`; `audit` has `fedq audit`.

Exit statuses: 0 done; 1 the run failed; 2 it was refused before it started; 3 too few clients have privacy budget left
for one round; 130 stopped by Ctrl-C. Heavy imports are inside the commands, so that `fedq --help` is fast.
"""

import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fedq import __version__
from fedq.cli import audit, client, models, privacy
from fedq.cli.terminal import FAILED, INTERRUPTED, SPENT, refuse, refuse_text, say, show

if TYPE_CHECKING:
    from fedq.config import Config
    from fedq.experiment import Experiment
    from fedq.results import Result
    from fedq.runtime.worker_processes import WorkerProcesses

    Start = Callable[[], Result]

app = typer.Typer(
    name="fedq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Hydra's flags that print a page and train nothing; then those that start many runs.
_PAGES = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
_SWEEP = {"-m", "--multirun"}
_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
}


def main() -> None:
    """Entry point of the `fedq` command."""
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop ends a run like Ctrl-C
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, _interrupt)  # so does a closed terminal
    try:
        app()
    except KeyboardInterrupt:
        say("stopped by the user")
        sys.exit(INTERRUPTED)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"fedq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated quantized training: QAT and DP on the clients, int8 on the wire, a real int8 model at the end."""


deploy_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Real SuperLinks and SuperNodes.")
app.add_typer(deploy_app, name="deploy")
app.add_typer(privacy.app, name="privacy")
app.add_typer(client.app, name="client")


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Run one experiment, or a sweep with -m.   fedq run --help lists every option.",
)
def run(context: typer.Context) -> None:
    """Run one experiment: `fedq run [KEY=VALUE ...]`, with Hydra's own flags."""
    arguments = list(context.args)
    sys.path.insert(0, str(Path.cwd()))  # a user's model and data are in the current folder
    dry = "--dry-run" in arguments
    arguments = ["runtime.insecure=true" if a == "--insecure" else a for a in arguments if a != "--dry-run"]
    overrides, flags = _split(arguments)
    overlay = _overlay(flags)
    if _PAGES & set(flags):
        if not {"--help", "-h", "--hydra-help"} & set(flags):
            _composed(overrides, overlay)
        _hydra(flags, overrides, overlay, _nothing)
    elif _SWEEP & set(flags):
        for job in _jobs(overrides):
            _composed(job, overlay)
        if dry:
            refuse_text("--dry-run: forecasts one experiment, not a sweep. Leave out -m")
        runs: list[tuple[list[str], Result]] = []
        _hydra(flags, overrides, overlay, lambda node: runs.append(_sweep_job(node, overlay)))
        _print_sweep(runs)
    else:
        config = _config(overrides, overlay)
        if dry:
            _print_forecast(_built(config))
        elif config.runtime.name == "deployment":
            _run(_deployed(config, overrides), overrides)
        else:
            _run_here(config, flags, overrides, overlay)


@deploy_app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Run the experiment over a real SuperLink and SuperNodes of this machine, with TLS and node keys.",
)
def rehearse(
    context: typer.Context,
    clients: Annotated[int | None, typer.Option(help="SuperNodes to start; the experiment's clients.")] = None,
) -> None:
    """Rehearse a deployment here: `fedq deploy rehearse --clients 3 [KEY=VALUE ...]`.

    Prints every command that it runs; in a deployment, each organisation runs its commands on its own machine. All
    files except the collected run folder are in a temporary directory, which is deleted at the end.
    """
    sys.path.insert(0, str(Path.cwd()))
    overrides, flags = _split(context.args)
    if flags:
        refuse_text(f"{flags[0]}: fedq deploy rehearse takes --clients N and KEY=VALUE overrides")
    if clients is not None:
        others = [o for o in overrides if o.startswith("clients=") and o != f"clients={clients}"]
        if others:
            refuse_text(f"--clients {clients} {others[0]}: give one of them, or the same number in both")
        overrides = [*(o for o in overrides if not o.startswith("clients=")), f"clients={clients}"]
    from fedq.console.live import LiveView
    from fedq.runtime.rehearsal import rehearsal

    config = _config(overrides, _overlay([]))
    _run(lambda: rehearsal(config, overrides, say=typer.echo, observers=[LiveView(notes_to_log=True)]), overrides)


@app.command(short_help="Make a Flower app of your own: fedq new DIR.")
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory; its name is the app's name.")],
) -> None:
    """Make a Flower app with a model, data, and an experiment that runs at once."""
    from fedq.new import COMMANDS, make_app

    try:
        made = make_app(folder)
    except ValueError as error:
        refuse_text(str(error))
    typer.echo(f"{made.folder}: a Flower app, {len(made.files)} files. Edit {made.package}/model.py and data.py.\n")
    typer.echo(f"  cd {shlex.quote(str(folder))}")
    typer.echo(textwrap.indent(COMMANDS, "  "))


models.add_to(app)
audit.add_to(app)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides, flags with their values) from the arguments."""
    overrides: list[str] = []
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            flags.append(argument)
            if argument in _WITH_VALUE:
                flags += [value for value in [next(rest, None)] if value is not None]
        else:
            overrides.append(argument)
    return overrides, flags


def _overlay(flags: Sequence[str]) -> Path | None:
    """The folder of the user's choices: from --config-dir, else `conf/` in the current folder; None without one."""
    from fedq.config import own_conf

    pairs = dict(zip(flags, [*flags, ""][1:], strict=True))
    if own := pairs.keys() & {"--config-name", "-cn", "--config-path", "-cp"}:
        refuse_text(f"{own.pop()}: the main config is fedq's. Use --config-dir DIR or conf/ for your own choices")
    named = pairs.get("--config-dir", pairs.get("-cd"))
    if named is None:
        return own_conf()
    if not Path(named).is_dir():
        refuse_text(f"--config-dir {named}: no such folder. Name one that holds groups, such as model/mine.yaml")
    return Path(named).absolute()


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, from Hydra's own sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException as error:
        refuse_text(str(error))


def _own(overrides: Sequence[str]) -> list[str]:
    """The overrides of the experiment, without those of Hydra itself."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def _composed(overrides: Sequence[str], overlay: Path | None) -> None:
    from fedq.config import ConfigError, compose, problems

    try:
        config = compose(_own(overrides), overlay=overlay)
        if found := problems(config):
            raise ConfigError(found)
    except ConfigError as error:
        refuse(error)


def _config(overrides: Sequence[str], overlay: Path | None) -> "Config":
    from fedq.config import ConfigError, compose

    try:
        return compose(_own(overrides), overlay=overlay)
    except ConfigError as error:
        refuse(error)


def _built(config: "Config") -> "Experiment":
    from fedq.config import ConfigError
    from fedq.runtime import built

    try:
        return built(config)
    except ConfigError as error:
        refuse(error)


def _hydra(flags: list[str], overrides: list[str], overlay: Path | None, task: Any) -> None:
    """Call Hydra's main, for its pages, sweeper and launchers."""
    import hydra

    from fedq.config import conf_folder
    from fedq.config.compose import hydra_arguments, register

    register()
    sys.argv = ["fedq run", *flags, *hydra_arguments(overrides, overlay)]
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)()


def _nothing(node: Any) -> None:
    """The task behind Hydra's pages: none."""


def _sweep_job(node: Any, overlay: Path | None) -> "tuple[list[str], Result]":
    from hydra.core.hydra_config import HydraConfig

    from fedq.config.compose import finished, typed

    overrides = list(HydraConfig.get().overrides.task)
    say(f"fedq run {' '.join(overrides)}")
    config = finished(typed(node), overrides, overlay)
    if config.runtime.name == "deployment":
        return overrides, _executed(_deployed(config, overrides))
    return overrides, _executed(_execution(_built(config)))


def _run_here(config: "Config", flags: list[str], overrides: list[str], overlay: Path | None) -> None:
    from fedq.runtime import early_workers

    with early_workers(config) as processes:
        experiment = _built(config)
        _print_plan(experiment)
        if flags or _own(overrides) != overrides:  # Hydra's own options: it composes once more, to read them
            _hydra(flags, overrides, overlay, lambda node: _run(_execution(experiment, processes), overrides))
        else:
            _run(_execution(experiment, processes), overrides)


def _execution(experiment: "Experiment", processes: "WorkerProcesses | None" = None) -> "Start":
    from fedq.console.live import LiveView
    from fedq.runtime import execute

    folder = _chosen_folder()
    return lambda: execute(experiment, folder=folder, observers=[LiveView()], processes=processes)


def _deployed(config: "Config", overrides: Sequence[str]) -> "Start":
    from fedq.console.live import LiveView
    from fedq.runtime import deploy

    return lambda: deploy(config, overrides, observers=[LiveView(notes_to_log=True)])


def _print_sweep(runs: "list[tuple[list[str], Result]]") -> None:
    from fedq.console import sweep_table

    show(sweep_table(runs))


def _run(start: "Start", overrides: Sequence[str]) -> None:
    from fedq.console import final_table, known_costs

    def report(result: "Result") -> None:
        costs = known_costs(result, [Path("outputs"), Path("simulations/results")])
        show(final_table(result, costs, overrides=list(overrides)))

    _executed(start, report)


def _executed(start: "Start", report: "Callable[[Result], None]" = lambda result: None) -> "Result":
    """Run and report; if the run does not succeed, end the command with its exit status."""
    from fedq.config import ConfigError
    from fedq.runtime import DeploymentError
    from fedq.server.roster import BudgetSpentError, LinkLostError, TooFewClientsError

    try:
        result = start()
    except ConfigError as error:
        refuse(error)
    except (TooFewClientsError, LinkLostError, DeploymentError) as error:
        say(f"fedq: {error}")
        sys.exit(SPENT if isinstance(error, BudgetSpentError) else FAILED)
    except OSError as error:  # no room, or no right, to write the run folder
        refuse_text(str(error))
    report(result)
    if result.status == "interrupted":
        sys.exit(INTERRUPTED)
    if result.status == "failed":
        say(f"fedq: {result.status_reason}")
        sys.exit(FAILED)
    if not _moved(result):
        logs = f"{result.folder}/clients" if result.folder else "in the state-dir of each"
        say(f"fedq: no round succeeded; clients' logs: {logs}")
        sys.exit(FAILED)
    return result


def _print_plan(experiment: "Experiment") -> None:
    """Print the cost of the run for each client and its noise, before training starts."""
    if not experiment.claims_privacy:
        return
    from fedq.experiment.trade_off import cost_summary

    summary = cost_summary(experiment.config)
    say(f"privacy: {summary['cost']}; noise {summary['noise']}; {summary.get('steps', 'rounds: ' + summary['rounds'])}")
    if rows := _held_rows(experiment):
        say(f"{experiment.config.privacy.ledger}: epsilon {'; '.join(' '.join(row).strip() for row in rows)}")


def _held_rows(experiment: "Experiment") -> list[tuple[str, str]]:
    """(epsilon, words) of the spends in the ledgers, and of the clients that lack the budget to take part."""
    from fedq.core.wording import spent
    from fedq.runtime.forecast import held, held_by_server

    rows: list[tuple[str, str]] = []
    if (server := held_by_server(experiment)) is not None:
        rows.append((spent(server.epsilon), "already spent under client-level DP, by the client that spent most"))
        if not server.after <= server.target:
            text = f"with this run, above the target {server.target:g}: refused"
            rows.append((spent(server.after), text))
    before = held(experiment)
    if before is None:
        return rows
    rows.append((spent(before.epsilon), "already spent by the client that spent most"))
    if before.after > before.target:
        text = f"with this run, above the target {before.target:g}: the budget is too small for all rounds"
        rows.append((spent(before.after), text))
    meanings = {"budget": "no budget for one more round", "ledger": "a ledger that cannot be read or trusted"}
    for reason, text in meanings.items():
        if names := [name for name, why in before.lacking.items() if why == reason]:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            rows.append(("", f"{text}: client{'s' * (len(names) > 1)} {', '.join(names[:10])}{more}"))
    return rows


def _chosen_folder() -> Path | None:
    """The run folder that the user gave to Hydra; None: fedq makes one."""
    chosen = any(o.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in sys.argv[1:])
    if not chosen:
        return None
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    if (folder / "rounds.jsonl").exists():
        refuse_text(f"{folder}: holds a run already. Give hydra.run.dir (or hydra.sweep.subdir) a folder of its own")
    return folder


def _moved(result: "Result") -> bool:
    return any(row.status == "ok" for row in result.history)


def _print_forecast(experiment: "Experiment") -> None:
    from fedq.console import forecast_table
    from fedq.runtime import forecast

    show(forecast_table(forecast(experiment), held=_held_rows(experiment)))
