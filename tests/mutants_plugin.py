"""Makes a pytest run inside mutmut short and repeatable. Knows pytest and hypothesis; not what is mutated."""

import gc
import json
from pathlib import Path

import pytest
from hypothesis import Phase, settings

STATS = Path("mutmut-stats.json")  # mutmut runs pytest in its own copy of the tree
EXAMPLES = 15


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickest test first: most mutants die by any test, and the run ends with the first that fails."""
    gc.freeze()  # what is imported stays: to walk over it took longer than the tests
    seconds = json.loads(STATS.read_text())["duration_by_test"] if STATS.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
    for test in {getattr(item, "function", None) for item in items}:
        # A test that states its own number of examples overrides a profile, hence by hypothesis's own attribute.
        told = getattr(test, "_hypothesis_internal_use_settings", None)
        if told is not None:
            test._hypothesis_internal_use_settings = settings(  # type: ignore[union-attr]
                told,
                max_examples=min(told.max_examples, EXAMPLES),
                derandomize=True,
                database=None,
                phases=(Phase.explicit, Phase.generate),  # to shrink what fails tells nobody anything
            )
