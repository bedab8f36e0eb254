# SPDX-License-Identifier: Apache-2.0
"""Sizes that matter: `(in, out)` of the matrices of Llama 3 with one and eight billion weights, and the tokens of a
decoding step."""

MOST_TOKENS = 256
"""Beyond it a product is a matter of arithmetic, and a dequantised copy of the matrix is cheap in comparison."""

TOKENS = (1, 8, 16, 32, 64)

MATRICES = {
    "1b q": (2048, 2048),
    "1b kv": (2048, 512),
    "1b up": (2048, 8192),
    "1b down": (8192, 2048),
    "8b q": (4096, 4096),
    "8b kv": (4096, 1024),
    "8b up": (4096, 14336),
    "8b down": (14336, 4096),
}
