# SPDX-License-Identifier: Apache-2.0
"""The one fallback loop."""

import pytest

from jaxpost.faults import Fault
from jaxpost.kernels.dispatch import Unsupported, dispatch, untried


def refuses(why):
    def implementation(*args, **kwargs):
        raise Unsupported(why)

    return implementation


def serves(*args, **kwargs):
    return args, kwargs


def test_the_first_that_serves_does():
    chosen = dispatch("op", {"fast": refuses("too large"), "plain": serves, "last": refuses("never asked")}, None)
    assert chosen(1, 2, axis=3) == ((1, 2), {"axis": 3})


def test_reasons_are_listed_when_none_serves():
    with pytest.raises(Unsupported, match=r"op: no implementation serves this input \(a: too large; b: not today\)"):
        dispatch("op", {"a": refuses("too large"), "b": refuses("not today")}, None)(1)


def test_a_forced_one_is_the_only_one_tried():
    implementations = {"a": refuses("too large"), "b": serves}
    assert dispatch("op", implementations, "b")(1, axis=2) == ((1,), {"axis": 2})
    with pytest.raises(Unsupported, match="^too large$"):
        dispatch("op", implementations, "a")(1)


def test_what_is_untried_is_served_only_where_it_is_asked_for_by_name():
    def new(*args):
        untried("a new kernel")
        return "new"

    implementations = {"new": new, "plain": lambda *args: "plain"}
    assert dispatch("op", implementations, None)(1) == "plain"
    assert dispatch("op", implementations, "new")(1) == "new"
    with pytest.raises(Unsupported, match="a new kernel compiles, but has not been run on such a device"):
        new(1)


def test_an_unknown_one_is_a_fault():
    with pytest.raises(Fault, match="op: no implementation 'refrence'; did you mean reference"):
        dispatch("op", {"reference": serves}, "refrence")


def test_other_errors_are_not_swallowed():
    def broken(*args):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        dispatch("op", {"a": broken, "b": serves}, None)(1)
