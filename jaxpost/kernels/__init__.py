# SPDX-License-Identifier: Apache-2.0
"""Operations with more than one implementation."""
