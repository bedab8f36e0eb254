#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernels' test suites on this machine's GPU, in one go: those cases that are skipped where there is none.
# Needs jaxpost[cuda,test]. PYTHON names the interpreter; arguments are passed on to pytest.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export JAXPOST_TEST_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "${PYTHON:-python3}" -m pytest -p no:cacheprovider -k "pallas_gpu or cudnn or on_a_gpu" tests/kernels "$@"
