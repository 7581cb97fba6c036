"""Exit statuses, and how the commands speak. Knows the terminal; not what any command does."""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from fedq.config import ConfigError

FAILED, REFUSED, SPENT, INTERRUPTED = 1, 2, 3, 130


def show(renderable: Any) -> None:
    """What the user asked for, on stdout."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def say(text: str) -> None:
    """A remark, on stderr."""
    typer.echo(text, err=True)


def refuse(error: "ConfigError") -> NoReturn:
    """End the command before it did anything, with all that is wrong."""
    count = len(error.problems)
    say(f"fedq: {count} problem{'s' * (count != 1)}; nothing was started")
    for problem in error.problems:
        say(f"  {problem}")
    sys.exit(REFUSED)


def refuse_text(text: str) -> NoReturn:
    """End the command before it did anything, with one reason."""
    say(f"fedq: {text}")
    sys.exit(REFUSED)
