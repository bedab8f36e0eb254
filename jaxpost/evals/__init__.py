# SPDX-License-Identifier: Apache-2.0
"""What a model can do, as numbers: before and after, on what it was trained on and on what it never saw."""
