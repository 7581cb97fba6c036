"""Makes a new Flower app that uses fedq: checks its name, writes files from templates. Depends on no other package."""

from fedq.new.app import COMMANDS, NewApp, make_app

__all__ = ["COMMANDS", "NewApp", "make_app"]
