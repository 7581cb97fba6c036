"""Exit statuses, and output of the commands. Knows the terminal; not the commands."""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from fedq.config import ConfigError

FAILED, REFUSED, SPENT, INTERRUPTED = 1, 2, 3, 130


def show(renderable: Any) -> None:
    """Print a result on stdout."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def say(text: str) -> None:
    """Print a message on stderr."""
    typer.echo(text, err=True)


def refuse(error: "ConfigError") -> NoReturn:
    """End the command before it starts, with all problems."""
    count = len(error.problems)
    say(f"fedq: {count} problem{'s' * (count != 1)}; nothing was started")
    for problem in error.problems:
        say(f"  {problem}")
    sys.exit(REFUSED)


def refuse_text(text: str) -> NoReturn:
    """End the command before it starts, with one reason."""
    say(f"fedq: {text}")
    sys.exit(REFUSED)
