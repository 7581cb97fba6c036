"""The node config: settings of a node's owner, from the SuperNode's `--node-config`. Knows keys; opens no file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedq.app.misspelt import misspelt
from fedq.config import Config, ConfigError, Problem, public
from fedq.config.budgets import own_delta, own_limit_problems


@dataclass(frozen=True)
class Node:
    """The settings of a node's owner: `--node-config 'name="clinic-a" data-path="..." state-dir="..."'`."""

    name: str | None = None
    partition: int | None = None
    data: Path | None = None
    state: Path | None = None
    policy: Path | None = None  # policy file: the weakest privacy that the owner accepts
    epsilon: float | None = None  # the owner's own budget, over all runs
    delta: float | None = None  # delta of that budget; 1e-5 if only an epsilon is given
    tips: Path | None = None  # key head-dir: folder for the tip of the ledger, if the policy names no file for it
    warm: bool = True  # whether a warm process may answer; read by `fedq.app.warm.handover`, and checked here

    @property
    def limited(self) -> bool:
        """Whether the owner set a budget."""
        return self.epsilon is not None

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "Node":
        """Read a node config. `ConfigError` for wrong values and misspelt keys; keys of other apps are ignored."""
        found = list(misspelt(node_config))

        def typed(key: str, kind: type, example: str) -> Any:
            value = node_config.get(key)
            if value is not None and type(value) is not kind:
                found.append(Problem(f"node-config {key}", value, f"must be a {kind.__name__}", f"Use {key}={example}"))
            return value

        name = typed("name", str, '"clinic-a"')
        partition = typed("partition-id", int, "0")
        data = typed("data-path", str, '"/path/to/own/data"')
        state = typed("state-dir", str, '"/path/to/own/state"')
        tips = typed("head-dir", str, '"/path/on/another/disk"')
        policy = typed("policy", str, '"/path/to/policy.toml"')
        warm = typed("warm", bool, "false")
        epsilon = node_config.get("epsilon")
        delta = own_delta(epsilon, node_config.get("delta"))
        found += own_limit_problems(epsilon, delta, where="node-config ", policy=policy)
        for key, path in (("data-path", data), ("state-dir", state), ("head-dir", tips), ("policy", policy)):
            if isinstance(path, str) and not Path(path).expanduser().is_absolute():
                rule = "must be absolute: in another working folder this node would start with an empty ledger"
                found.append(Problem(f"node-config {key}", path, rule, f'Use {key}="/..."'))
        if name is None and partition is None:
            found.append(Problem("node-config name", None, "a client needs a name", 'Use name="clinic-a"'))
        if found:
            raise ConfigError(found)
        own = (Path(p).expanduser() if p else None for p in (data, state, policy, tips))
        own_data, own_state, own_policy, own_tips = own
        budget = None if epsilon is None else float(epsilon)
        return cls(name, partition, own_data, own_state, own_policy, budget, delta, own_tips, warm is not False)

    def identity(self, config: Config) -> str:
        """The client's name, or the name of its partition. `ConfigError` if the experiment has no such client."""
        names = public.identities(config)
        if self.name is not None:
            if self.name in names:
                return self.name
            hint = f"The experiment's names are {', '.join(names[:5])}, ...; set names=[...] in it, or name in the node"
            raise ConfigError([Problem("node-config name", self.name, "no client of the experiment", hint)])
        if self.partition is None or not 0 <= self.partition < len(names):
            hint = f"Use 0 to {len(names) - 1}, or clients=N with a larger N"
            raise ConfigError(
                [Problem("node-config partition-id", self.partition, "no client of the experiment", hint)]
            )
        return names[self.partition]
