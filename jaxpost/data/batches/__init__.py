# SPDX-License-Identifier: Apache-2.0
"""Tokens into rows of batches: packing, lanes, positions that can be saved."""
