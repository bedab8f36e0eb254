# SPDX-License-Identifier: Apache-2.0
"""Adapters of Hugging Face's PEFT as deltas over a decoder, in and out: adapter_config.json and
adapter_model.safetensors.

LoRA (rank-stabilised, DoRA, with biases, embeddings, experts), AdaLoRA, IA3, prompts, P-tuning's prompts and prefixes,
each with modules that are saved whole. What a delta here and an adapter there cannot both say is refused by name.
Facts are those of PEFT 0.21.2.
"""

from jaxpost.interop.peft.reading import load as load
from jaxpost.interop.peft.writing import save as save
