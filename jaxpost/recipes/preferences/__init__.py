# SPDX-License-Identifier: Apache-2.0
"""Learning from answers that were compared or called good or bad: what reward, dpo and kto share."""
