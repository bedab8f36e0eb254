# SPDX-License-Identifier: Apache-2.0
"""One loop for every recipe: state in, state out."""
