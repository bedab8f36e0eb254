# SPDX-License-Identifier: Apache-2.0
"""The one fallback loop."""

import jax
import pytest

from jaxpost.faults import Fault
from jaxpost.kernels.dispatch import Unsupported, dispatch, faster, forced, interpreted, unasked


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


def test_what_loses_is_served_only_where_it_is_asked_for_by_name():
    def slow(*args):
        unasked("another is faster")
        return "slow"

    implementations = {"slow": slow, "plain": lambda *args: "plain"}
    assert dispatch("op", implementations, None)(1) == "plain"
    assert dispatch("op", implementations, "slow")(1) == "slow"
    with pytest.raises(Unsupported, match="^another is faster; ask for it by name to have it$"):
        slow(1)


def test_an_unknown_one_is_a_fault():
    with pytest.raises(Fault, match="op: no implementation 'refrence'; did you mean reference"):
        dispatch("op", {"reference": serves}, "refrence")


def test_other_errors_are_not_swallowed():
    def broken(*args):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        dispatch("op", {"a": broken, "b": serves}, None)(1)


NAMED = {"fast": lambda x: x + 1, "slow": lambda x: x + 2, "reference": lambda x: x + 3}


def test_a_whole_program_can_be_forced_and_jit_knows():
    """Inside nothing is used that was traced outside, nor the other way round."""
    program = jax.jit(lambda x: dispatch("attention", NAMED, None)(x))
    assert program(0) == 1
    with forced(attention="slow"):
        assert program(0) == 2
        with forced(quant_matmul="reference"):
            assert program(0) == 2
        with forced(attention="reference"):
            assert program(0) == 3
        assert program(0) == 2 and dispatch("attention", NAMED, "fast")(0) == 1, "who asks himself is served"
        assert dispatch("quant_matmul", NAMED, None)(0) == 1
    assert program(0) == 1


def test_what_is_forced_and_refuses_is_not_replaced():
    implementations = {"fast": refuses("too large"), "reference": serves}
    with forced(lowrank_matmul="fast"):
        for way in (dispatch("lowrank_matmul", implementations, None), faster("lowrank_matmul", implementations)):
            with pytest.raises(Unsupported, match="^too large$"):
                way(1)
    with pytest.raises(Unsupported, match="no implementation serves this input"):
        faster("lowrank_matmul", implementations)(1)
    with forced(lowrank_matmul="reference"):
        assert faster("lowrank_matmul", implementations)(1) == ((1,), {})


def test_what_is_forced_was_asked_for_by_name():
    def loser(x):
        unasked("another is faster")
        return x

    with forced(attention="loser"):
        assert dispatch("attention", {"loser": loser, **NAMED}, None)(5) == 5


def test_kernels_are_interpreted_where_that_is_asked_for():
    assert not interpreted()
    with forced(interpreted=True):
        with forced(attention="splash"):
            assert interpreted()
    assert not interpreted()


def test_forcing_what_there_is_not_is_a_fault():
    with pytest.raises(Fault, match="no operation 'atention'; did you mean attention"), forced(atention="splash"):
        pass
    with forced(attention="slash"), pytest.raises(Fault, match="attention: no implementation 'slash'"):
        dispatch("attention", NAMED, None)(1)
