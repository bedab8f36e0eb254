# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxpost.cli`: the command line where its script is not installed."""

from jaxpost.cli import main

main()
