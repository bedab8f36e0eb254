# SPDX-License-Identifier: Apache-2.0
"""Rows of files and what they say: fields under our names, shapes told by them."""
