# SPDX-License-Identifier: Apache-2.0
"""What is done to rows once: cleaning, and tokens that are kept."""
