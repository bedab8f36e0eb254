# SPDX-License-Identifier: Apache-2.0
"""The tasks of the nano world, one file a cluster."""
