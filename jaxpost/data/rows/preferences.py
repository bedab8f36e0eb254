# SPDX-License-Identifier: Apache-2.0
"""Where the prompt ends that a chosen and a rejected answer share."""

import os
import re
from collections.abc import Mapping
from typing import Any

from jaxpost.faults import Fault

Message = Mapping[str, Any]

# What stands before an answer in transcripts: a speaker's name on a line of its own or at its start, or the marks of
# the usual chat templates.
SPEAKS = re.compile(
    r"(?:^|\n)(?:\#+ ?)?(?:assistant|response|answer|gpt|bot|model|ai) ?:(?=\s|$)"
    r"|<\|assistant\|>\n?"
    r"|<\|im_start\|>assistant\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<start_of_turn>model\n"
    r"|\[/INST\]",
    re.IGNORECASE,
)


def implicit_prompt(chosen: Any, rejected: Any, where: str) -> tuple[Any, Any, Any]:
    """The prompt that both begin with, and what each says behind it. Together they are what was given.

    Of strings: up to and with the last mark inside the common beginning that the assistant speaks next (as
    `\\n\\nAssistant:`), else up to the last white space in it. Of messages: the common ones up to the last that is
    not the assistant's, so that each answer keeps something to say.
    """
    end = _of_strings(chosen, rejected) if isinstance(chosen, str) else _of_messages(chosen, rejected)
    if not end:
        raise Fault(
            f"{where}: 'chosen' and 'rejected' do not begin alike, so there is no prompt to be found in them; add a "
            "field 'prompt', or map one (columns)"
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _of_strings(chosen: str, rejected: str) -> int:
    shared = os.path.commonprefix([chosen, rejected])
    marks = [found.end() for found in SPEAKS.finditer(chosen) if found.end() <= len(shared)]
    if marks:
        return marks[-1]
    spaces = [found.start() for found in re.finditer(r"\s", shared) if shared[: found.start()].strip()]
    return spaces[-1] if spaces else 0


def _of_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    most = min(len(chosen), len(rejected)) - 1
    end = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    while end and chosen[end - 1]["role"] == "assistant":
        end -= 1
    return end


def without_prompt(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The three with the prompt taken out of answers that are messages and repeat it.

    A prompt that is a string may be the last of the messages that both begin with: then all of those are the prompt.
    """
    if isinstance(chosen, str) or not chosen or not rejected:
        return prompt, chosen, rejected
    if isinstance(prompt, str):
        end = _of_messages(chosen, rejected)
        if end and chosen[end - 1].get("content") == prompt:
            return chosen[:end], chosen[end:], rejected[end:]
        return prompt, chosen, rejected
    size = len(prompt)
    repeated = all(len(answer) > size and answer[:size] == prompt for answer in (chosen, rejected))
    return (prompt, chosen[size:], rejected[size:]) if repeated else (prompt, chosen, rejected)
