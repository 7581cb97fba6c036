"""Every example in a docstring runs as it stands."""

import doctest
import importlib
from pathlib import Path

import pytest

import fedq

PACKAGE = Path(fedq.__file__).parent


def modules_with_examples():
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text():
            yield ".".join(["fedq", *path.relative_to(PACKAGE).with_suffix("").parts])


@pytest.mark.integration
@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_hold(name):
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("name", ["encode", "decode", "Layout", "Accumulator"])
def test_the_public_codec_shows_how_it_is_used(name):
    assert ">>> " in getattr(fedq.codec, name).__doc__


@pytest.mark.parametrize("name", sorted(set(fedq.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_is(name):
    assert len(getattr(fedq, name).__doc__) > 60
