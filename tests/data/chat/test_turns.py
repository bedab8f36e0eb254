# SPDX-License-Identifier: Apache-2.0
"""Turns of which a template writes otherwise in the middle of an answer than at its end: calls and thoughts."""

import pytest

from jaxpost.data.parts import joined
from jaxpost.data.text import unlearnt
from jaxpost.data.tokenizers import prompt_ids, tokenise
from jaxpost.faults import Fault
from tests.data.chat.test_template import TOKENIZERS, own, talk, trained

# Written as Qwen3's template words calls, thoughts and what tools answer.
QWEN3 = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(asked=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.asked = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response><|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and (loop.last or m.reasoning_content) %}
            {{- '<think>\\n' ~ (m.reasoning_content or '') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- ('\\n' if m.content else '') ~ '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- (call.function.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
OFFERED = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def calls(content: str = "", **more):
    call = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
    return {"role": "assistant", "content": content, "tool_calls": [call], **more}


CALLED = '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
NOTHING = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    "answer", [{"role": "tool", "content": "rain"}, talk("<tool_response>\nrain\n</tool_response>")[0]]
)
@pytest.mark.parametrize("said", ["", "I look.", "<|im_end|>?"])
def test_calls_after_the_last_question_are_trained_though_only_the_last_turn_has_thoughts(said, answer):
    called = f"{said}\n{CALLED}" if said else CALLED
    messages = [*talk("Hi", "Ho", "Rain?"), calls(said), answer, calls(), answer, *talk("", "Yes.")[1:]]
    for count, wanted in (
        (4, [NOTHING + called]),
        (5, [called]),
        (7, [called, CALLED]),
        (8, [called, CALLED, f"{NOTHING}Yes.<|im_end|>"]),
    ):
        assert trained(own("qwen3", QWEN3), messages[:count], tools=OFFERED) == wanted
        # Where thinking is off, the empty thoughts stand in the prompt, and are not learned.
        off = own("qwen3", QWEN3).configured(enable_thinking=False)
        assert trained(off, messages[:count], tools=OFFERED) == [text.removeprefix(NOTHING) for text in wanted]
        parts = own("qwen3", QWEN3).parts(messages[:count], OFFERED)
        assert unlearnt(parts) == 1, "the first answer, without its thoughts"
    assert joined(parts) == own("qwen3", QWEN3).jinja.render(messages, OFFERED).text
    # A sampler that is called after each answer of a tool sees what training shows.
    ids = tokenise(TOKENIZERS["qwen"], parts).ids.tolist()
    for count in (5, 7):
        prompt = prompt_ids(TOKENIZERS["qwen"], own("qwen3", QWEN3).prompt(messages[:count], OFFERED))
        assert ids[: len(prompt)] == prompt


def test_thoughts_before_a_call_are_trained_with_it():
    messages = [
        *talk("Rain?"),
        calls(reasoning_content="hm"),
        {"role": "tool", "content": "rain"},
        *talk("", "Yes.")[1:],
    ]
    template = own("qwen3", QWEN3)
    assert trained(template, messages, tools=OFFERED)[0] == f"<think>\nhm\n</think>\n\n{CALLED}"
    with pytest.raises(Fault, match=r"f: what qwen3.jinja renders before messages\[1\]"):
        template.configured(enable_thinking=False).parts(messages, OFFERED, where="f")
    # A template that drops the thoughts of all turns but the last: what is left of the others is not what was spoken.
    dropping = own("qwen3", QWEN3.replace("or m.reasoning_content)", ")"))
    parts = dropping.parts(messages, OFFERED)
    assert [part.text for part in parts if part.trained] == [f"{NOTHING}Yes.<|im_end|>"] and unlearnt(parts) == 1


def test_a_turn_after_the_last_question_that_cannot_be_told_is_a_fault():
    source = QWEN3.replace(
        "    {{- '<|im_end|>\\n' }}\n    {%- else", "    {{- '<|im_end|>\\n' if loop.last }}\n    {%- else"
    )
    assert source != QWEN3
    messages = [*talk("Rain?"), calls(), {"role": "tool", "content": "rain"}, *talk("", "Yes.")[1:]]
    with pytest.raises(
        Fault, match=r"f: messages\[1\] reads otherwise in the whole conversation than where qwen3.jinja"
    ):
        own("qwen3", source).parts(messages, OFFERED, where="f")


def test_tools_that_a_template_has_no_words_for():
    with pytest.raises(Fault, match="f: chatml.jinja leaves out the tool 'look'; drop the row's tools"):
        own("chatml").parts(talk("Shall I look?", "Yes."), OFFERED, where="f")
    first = own("qwen3", QWEN3.replace("for tool in tools", "for tool in tools[:1]"))
    with pytest.raises(Fault, match="leaves out the tool 'other'"):
        first.parts(talk("Hi", "Ho"), [*OFFERED, {"name": "other"}])
