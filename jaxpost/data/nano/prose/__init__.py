# SPDX-License-Identifier: Apache-2.0
"""Plain text of the nano world, by theme. Each file ends in `PIECES`: functions from dice to a few sentences."""
