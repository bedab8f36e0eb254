# SPDX-License-Identifier: Apache-2.0
"""Learning from a model's own answers: what ppo and grpo share."""
