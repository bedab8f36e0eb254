# SPDX-License-Identifier: Apache-2.0
"""Small pieces of text together with what is true in them.

Tasks and pre-training text are made from the same scenes, so that tuning has to teach the form of a question only.
"""
