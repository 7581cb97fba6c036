"""`--allow MODULE` for commands that read files of another party. Knows arguments; imports no such module.

`fedq run` does not have it, because it runs the user's own experiment with the user's own code.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli.terminal import refuse_text, say

if TYPE_CHECKING:
    from fedq.config import Config

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="MODULE", help="A module that the config's model or data may come from; may be repeated."
    ),
]


def allowed(names: list[str] | None) -> tuple[str, ...]:
    """The named modules. From now on they can be imported from the current folder, and nothing else there can."""
    from fedq.experiment.foreign import FromFolder, checked_modules

    try:
        modules = checked_modules(names or ())
    except ValueError as error:
        refuse_text(str(error))
    if modules:
        sys.meta_path.append(FromFolder(Path.cwd(), modules))
    return modules


def print_named_files(config: "Config") -> None:
    """Print the files outside the current folder that the config makes this command read."""
    from fedq.experiment.foreign import named_files

    here = Path.cwd().resolve()
    for key, text in named_files(config).items():
        if not Path(text).expanduser().resolve().is_relative_to(here):
            say(f"fedq: reads {key}={text}, as the config says")
