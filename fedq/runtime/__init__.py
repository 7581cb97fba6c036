"""How the two apps are run. Depends on processes and folders; not on terminals, and not on how a round works."""

from fedq.runtime.deployment import DeploymentError, deploy
from fedq.runtime.forecast import forecast
from fedq.runtime.observers import Observer, Observers, RunStart
from fedq.runtime.start import OUTPUTS, built, check, early_workers, execute, run_observed

__all__ = [
    "OUTPUTS",
    "DeploymentError",
    "Observer",
    "Observers",
    "RunStart",
    "built",
    "check",
    "deploy",
    "early_workers",
    "execute",
    "forecast",
    "run_observed",
]
