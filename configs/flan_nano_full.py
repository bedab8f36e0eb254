# SPDX-License-Identifier: Apache-2.0
"""The same instruction tuning as flan_nano_lora.py, of every number of the model instead of low-rank factors.

jaxpost train configs/flan_nano_full.py
"""

from dataclasses import replace

import flan_nano_lora

from jaxpost.delta import Full
from jaxpost.recipes import sft


def base() -> sft.Config:
    lora = flan_nano_lora.base()
    return replace(lora, run="runs/flan_nano_full", delta=Full(), optim=replace(lora.optim, lr=5e-4))


def tiny() -> sft.Config:
    return replace(flan_nano_lora.tiny(), run="runs/flan_nano_full_tiny", delta=Full())
