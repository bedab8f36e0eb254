# SPDX-License-Identifier: Apache-2.0
"""Losses as functions: arrays in, arrays out. Importing this brings no model, no data and no training."""

from jaxpost.losses.reduce import masked_mean as masked_mean
from jaxpost.losses.spans import last_tokens as last_tokens
from jaxpost.losses.spans import place_losses as place_losses
from jaxpost.losses.token import cross_entropy as cross_entropy
from jaxpost.losses.token import z_loss as z_loss
