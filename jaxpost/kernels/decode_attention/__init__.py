# SPDX-License-Identifier: Apache-2.0
"""Attention of new tokens to a cache of keys and values: what a step of decoding spends its time on."""

from jaxpost.kernels.decode_attention.api import decode_attention as decode_attention
from jaxpost.kernels.decode_attention.api import reads_in_place as reads_in_place
from jaxpost.kernels.decode_attention.cache import KV as KV
from jaxpost.kernels.decode_attention.cache import Cached as Cached
from jaxpost.kernels.decode_attention.cache import Entries as Entries
from jaxpost.kernels.decode_attention.cache import bytes_per_entry as bytes_per_entry
from jaxpost.kernels.decode_attention.cache import empty as empty
from jaxpost.kernels.decode_attention.cache import stored as stored
