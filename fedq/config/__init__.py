"""What an experiment IS: typed options, the rules that span groups, and how overrides become one config.

Knows Hydra; not torch, Flower or any room below. Rooms below take values, never a config.
"""

from fedq.config.compose import compose, conf_folder, own_conf
from fedq.config.problem import ConfigError, Problem
from fedq.config.rules import identity, problems
from fedq.config.schema import Config

__all__ = ["Config", "ConfigError", "Problem", "compose", "conf_folder", "identity", "own_conf", "problems"]
