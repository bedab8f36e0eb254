# SPDX-License-Identifier: Apache-2.0
"""Functional models: a config, a tree of specs, and pure functions from weights and tokens to hidden states."""
