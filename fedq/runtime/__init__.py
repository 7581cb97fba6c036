"""How the two apps are run. Knows processes, folders and the terminal; not how a round works."""

from fedq.runtime.forecast import forecast
from fedq.runtime.start import check, execute, run

__all__ = ["check", "execute", "forecast", "run"]
