"""Rules about augmentation under DP. Knows the schema; not images or gradients."""

from collections.abc import Iterator, Sequence

from fedq.config.problem import Problem
from fedq.config.schema import Config

AUGMENTATIONS = ("flip", "shift")  # a test compares them with those of the training package


def augmentation_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with `privacy.augment`."""
    kinds = list(config.privacy.augment)
    if not kinds or not set(kinds) <= set(AUGMENTATIONS):
        rule = f"must be one or more of {', '.join(AUGMENTATIONS)}"
        yield Problem("privacy.augment", kinds, rule, "Use privacy.augment=[flip,shift]")


def idle_augmentation(config: Config) -> tuple[Sequence[str], bool, str, str]:
    """Options without effect if there is no augmentation: (keys, whether they apply, why not, the fix)."""
    rule = "privacy.augmentations=1 uses the image alone, so this option would do nothing"
    return ("privacy.augment",), config.privacy.augmentations > 1, rule, "Add privacy.augmentations=4"
