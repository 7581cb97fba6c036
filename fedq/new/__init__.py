"""A new Flower app that uses fedq: names that may be used, files from templates. Knows none of fedq's other rooms."""

from fedq.new.app import COMMANDS, NewApp, make_app

__all__ = ["COMMANDS", "NewApp", "make_app"]
