# SPDX-License-Identifier: Apache-2.0
"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) by table, many bytes at a time, with the mask of TFRecord files."""

from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
BLOCK = 4096


@cache
def _tables() -> np.ndarray:
    """`tables[k, b]`: what a byte b contributes to the checksum of a message in which k bytes follow it."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ np.uint32(POLYNOMIAL), first >> 1)
    tables = np.empty((BLOCK, 256), np.uint32)
    tables[0] = first
    for k in range(1, BLOCK):
        tables[k] = (tables[k - 1] >> 8) ^ first[tables[k - 1] & 255]
    return tables


def crc32c(messages: np.ndarray) -> np.ndarray:
    """The checksum of each row of a matrix of bytes, uint32[rows].

    It is linear in the bits: bytes look up what they contribute, and the state after a block goes into the first four
    bytes of the next.
    """
    tables = _tables()
    state = np.full(len(messages), 0xFFFFFFFF, np.uint32)
    for start in range(0, messages.shape[1], BLOCK):
        block = messages[:, start : start + BLOCK]
        size = block.shape[1]
        parts = tables[np.arange(size - 1, -1, -1), block ^ _bytes(state, size)]
        rest = state >> np.uint32(8 * size) if size < 4 else np.zeros_like(state)
        state = np.bitwise_xor.reduce(parts, axis=1) ^ rest
    return ~state


def _bytes(state: np.ndarray, size: int) -> np.ndarray:
    """The state's four bytes, lowest first, laid over a block of that size."""
    laid = np.zeros((len(state), max(size, 4)), np.uint8)
    laid[:, :4] = state[:, None] >> np.array([0, 8, 16, 24], np.uint32) & 255
    return laid[:, :size]


def masked(checksum: np.ndarray) -> np.ndarray:
    """As TFRecord files hold it (tensorflow/core/lib/hash/crc32c.h: rotated, so that data with checksums in it is
    not mistaken)."""
    return ((checksum >> np.uint32(15)) | (checksum << np.uint32(17))) + np.uint32(0xA282EAD8)
