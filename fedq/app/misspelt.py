"""Finds misspelt keys of fedq in a node config. Knows names; not their meaning.

Flower and other apps keep their own keys in the same node config, so an unknown key is no error. But if `polcy="..."`
were ignored as another app's key, its owner would have no policy.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from fedq.config import Problem

OURS: Final = ("name", "partition-id", "data-path", "state-dir", "head-dir", "policy", "epsilon", "delta", "warm")
LIMITS: Final = ("policy", "epsilon", "delta")  # without these keys more data would leave, and nobody would notice
# Similar keys of others: `dataset-path` is in Flower's own examples, `delay` and `warmup` are ordinary words.
OTHERS: Final = ("num-partitions", "dataset-path", "delay", "warmup")
_SYNONYMS: Final = {"eps": "epsilon", "budget": "epsilon"}
_CUTOFF: Final = 0.8  # for difflib: one wrong letter in a word of five


def misspelt(node_config: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each key that is probably a misspelt key of fedq."""
    for key, value in node_config.items():
        if (ours := _meant(key)) is not None:
            rule = f"is not a key of fedq, but similar to {ours}, and this node would ignore it"
            yield Problem(f"node-config {key}", value, rule, f"Use {ours}=, or another name if it is another app's")


def _meant(key: str) -> str | None:
    if key in OURS or key in OTHERS:
        return None
    folded = key.casefold().replace("_", "-").replace(".", "-")
    parts = folded.split("-")
    if found := next((limit for limit in LIMITS if limit in parts), None):  # policy-file, max-epsilon
        return found
    return _SYNONYMS.get(folded) or next(iter(get_close_matches(folded, OURS, n=1, cutoff=_CUTOFF)), None)
