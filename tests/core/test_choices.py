"""A name without an implementation, or an implementation without a name, fails on import."""

import pytest

from fedq.core.choices import implemented


def test_implementations_come_in_the_order_of_the_names():
    assert list(implemented(("b", "a"), {"a": 1, "b": 2}).items()) == [("b", 2), ("a", 1)]


@pytest.mark.parametrize("given", [{"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_names_and_implementations_must_be_the_same(given):
    with pytest.raises(TypeError, match=r"^[bc]: fedq.core.choices and the implementations must name the same"):
        implemented(("a", "b"), given)
