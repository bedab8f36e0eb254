# SPDX-License-Identifier: Apache-2.0
"""What people run: each recipe is a config, a loss made of parts from the other rooms, and a main."""
