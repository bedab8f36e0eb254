#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a bare checkout to a tuned model: makes .venv, installs jaxpost, runs the main job. Safe to repeat.
# Arguments are passed on to the run, e.g. ./launch/quickstart.sh --help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

install ""
say "Running jaxpost train configs/flan_nano_lora.py${*:+ $*}"
exec "$venv/bin/jaxpost" train configs/flan_nano_lora.py "$@"
