"""The config of an experiment: typed options, rules that span groups, and the composition of overrides.

Depends on Hydra; does not know torch or Flower. Packages below take single values, never a config.
"""

from fedq.config.compose import compose, conf_folder, own_conf
from fedq.config.problem import ConfigError, Problem
from fedq.config.rules import identity, problems
from fedq.config.schema import Config

__all__ = ["Config", "ConfigError", "Problem", "compose", "conf_folder", "identity", "own_conf", "problems"]
