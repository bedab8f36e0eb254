# SPDX-License-Identifier: Apache-2.0
"""Suites that count their cases: what silently runs nowhere would else never be missed."""

import pytest


@pytest.fixture
def alone(request) -> bool:
    """Whether all tests run in this one process, so that what they counted can be looked at. Spread over several
    (pytest-xdist) each process has run some of them; that all were chosen can still be seen."""
    return not hasattr(request.config, "workerinput")


@pytest.fixture
def chosen(request) -> list[str]:
    """The names of this file's cases that were asked for; skips the test if only some tests of the file were."""
    names = [item.name for item in request.session.items if item.fspath == request.node.fspath]
    defined = {name for name in vars(request.module) if name.startswith("test_")}
    if {name.partition("[")[0] for name in names} != defined or request.config.option.keyword:
        pytest.skip("only some tests of this file were asked for")
    return names
