"""How the two apps are run. Knows processes, folders and the terminal; not how a round works."""

from fedq.runtime.deployment import DeploymentError, deploy
from fedq.runtime.forecast import forecast
from fedq.runtime.start import built, check, execute, run

__all__ = ["DeploymentError", "built", "check", "deploy", "execute", "forecast", "run"]
