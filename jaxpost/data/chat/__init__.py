# SPDX-License-Identifier: Apache-2.0
"""Conversations as models expect them: templates, and which of their words are the assistant's."""
