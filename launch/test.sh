#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole test suite: makes .venv if need be, installs the test extra, runs pytest on two processes. Safe to repeat.
# Arguments are passed on to pytest, with paths as seen from the checkout, e.g. ./launch/test.sh tests/test_layering.py
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

install test
say "Running pytest -n 2${*:+ $*}"
exec "$venv/bin/python" -m pytest -n 2 "$@"
