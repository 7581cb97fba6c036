"""`--allow MODULE` of commands that read what another party may have written. Knows arguments; imports no such module.

Not `fedq run`: it runs the user's own experiment, with the user's own code.
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
        "--allow", metavar="MODULE", help="A module that the config's model or data may come from; repeat it."
    ),
]


def allowed(names: list[str] | None) -> tuple[str, ...]:
    """The modules that were named; those of the current folder can be imported from now on, and nothing else there."""
    from fedq.experiment.foreign import FromFolder, checked_modules

    try:
        modules = checked_modules(names or ())
    except ValueError as error:
        refuse_text(str(error))
    if modules:
        sys.meta_path.append(FromFolder(Path.cwd(), modules))
    return modules


def say_files(config: "Config") -> None:
    """Which files of this machine the config makes the command read, unless they lie below the current folder."""
    from fedq.experiment.foreign import named_files

    here = Path.cwd().resolve()
    for key, text in named_files(config).items():
        if not Path(text).expanduser().resolve().is_relative_to(here):
            say(f"fedq: reads {key}={text}, as the config says")
