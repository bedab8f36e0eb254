# SPDX-License-Identifier: Apache-2.0
"""jaxpost: post-training of language models as edits to a parameter tree."""

__version__ = "0.1.0"
