"""Which options of augmentation under DP go together. Knows the schema; not images or gradients."""

from collections.abc import Iterator, Sequence

from fedq.config.problem import Problem
from fedq.config.schema import Config

AUGMENTATIONS = ("flip", "shift")  # a test compares them with those of the training room


def views_problems(config: Config) -> Iterator[Problem]:
    kinds = list(config.privacy.augment)
    if not kinds or not set(kinds) <= set(AUGMENTATIONS):
        rule = f"must be one or more of {', '.join(AUGMENTATIONS)}"
        yield Problem("privacy.augment", kinds, rule, "Use privacy.augment=[flip,shift]")


def idle_views(config: Config) -> tuple[Sequence[str], bool, str, str]:
    """Options that do nothing beside others: (keys, whether they apply, why not, the fix)."""
    rule = "privacy.augmentations=1 is the image alone, so it would do nothing"
    return ("privacy.augment",), config.privacy.augmentations > 1, rule, "Add privacy.augmentations=4"
