"""Keys of a node config that are ours but for a slip. Knows names; not what they mean or who set them.

A node config is shared: Flower and other apps keep keys of their own in it, so an unknown key is no error. But
`polcy="..."`, taken for somebody else's, would leave its owner without the policy.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from fedq.config import Problem

OURS: Final = ("name", "partition-id", "data-path", "state-dir", "head-dir", "policy", "epsilon", "delta")
LIMITS: Final = ("policy", "epsilon", "delta")  # without which more would leave, and nobody would notice
# Near ours, and others': `dataset-path` is that of Flower's own examples, `delay` an ordinary word.
OTHERS: Final = ("num-partitions", "dataset-path", "delay")
_SYNONYMS: Final = {"eps": "epsilon", "budget": "epsilon"}
_CUTOFF: Final = 0.8  # of difflib: one slip in a word of five letters


def misspelt(node_config: Mapping[str, Any]) -> Iterator[Problem]:
    """One for each key that was probably meant to be one of ours."""
    for key, value in node_config.items():
        if (ours := _meant(key)) is not None:
            rule = f"no key of fedq's, and nearly {ours}, without which this node would go on as if you had not said it"
            yield Problem(f"node-config {key}", value, rule, f"Use {ours}=, or another name if it is another app's")


def _meant(key: str) -> str | None:
    if key in OURS or key in OTHERS:
        return None
    folded = key.casefold().replace("_", "-").replace(".", "-")
    parts = folded.split("-")
    if found := next((limit for limit in LIMITS if limit in parts), None):  # policy-file, max-epsilon
        return found
    return _SYNONYMS.get(folded) or next(iter(get_close_matches(folded, OURS, n=1, cutoff=_CUTOFF)), None)
