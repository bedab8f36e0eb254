# SPDX-License-Identifier: Apache-2.0
"""Text from a model: prefill, decode, and what is drawn from the logits."""

from jaxpost.sample.generate import Completion as Completion
from jaxpost.sample.generate import generate as generate
from jaxpost.sample.generate import stream as stream
from jaxpost.sample.logits import Sampling as Sampling
from jaxpost.sample.merged import merged as merged
