# SPDX-License-Identifier: Apache-2.0
"""Learning from what models say of answers: what rlaif and constitutional share."""
