# SPDX-License-Identifier: Apache-2.0
"""Every test here keeps what it unpacks and downloads in a folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
