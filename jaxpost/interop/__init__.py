# SPDX-License-Identifier: Apache-2.0
"""Models in the formats of other libraries, in and out."""

from jaxpost.interop.hf import load as load
from jaxpost.interop.hf import read_config as read_config
from jaxpost.interop.hf import save as save
from jaxpost.interop.hf import tensors as tensors
