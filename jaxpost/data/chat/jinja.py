# SPDX-License-Identifier: Apache-2.0
"""A model's chat template, compiled once and rendered in a sandbox as transformers renders it.

What transformers 5.23 offers a template (its `apply_chat_template`), this offers too: block trimming, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that leaves HTML characters alone, `{% generation %}`, reasoning under
each of its names. The sandbox is Jinja's immutable one: a template comes with a model, and is not ours to trust.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxpost.faults import Fault

ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that a message's reasoning goes by
# Around what `{% generation %}` encloses: code points that Unicode keeps out of text for such uses.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
MARK = re.compile(f"([{OPEN}{CLOSE}])")


class Rendering(NamedTuple):
    """A conversation as text, and the ranges of characters that the template itself marks as generated."""

    text: str
    spans: tuple[tuple[int, int], ...]


class Jinja:
    """A template's source, compiled. `name` is the file it is from; `variables` are what it may read besides the
    conversation: the special tokens (`bos_token`, ...) and options of its own (`enable_thinking`). `today` is the
    date that `strftime_now` writes (at midnight: a time of day would be another in every rendering); where it is
    empty, the date on which this is made."""

    def __init__(self, source: str, name: str, variables: Mapping[str, Any] | None = None, today: str = ""):
        self.source, self.name, self.variables = source, name, dict(variables or {})
        try:
            self._today = datetime.combine(date.fromisoformat(today) if today else date.today(), time())
        except ValueError:
            raise Fault(f"{name}: the date of today is given as {today!r}; write it as 2025-07-31") from None
        try:
            self._template = ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise Fault(f"{name}: line {error.lineno} is not Jinja: {error.message}") from None
        except (RecursionError, ValueError, OverflowError) as error:
            raise Fault(f"{name}: not a template that Jinja can compile ({error})") from None
        parsed = ENVIRONMENT.parse(source)
        blocks = parsed.find_all(jinja2.nodes.CallBlock)
        self._dated = any(name.name == "strftime_now" for name in parsed.find_all(jinja2.nodes.Name))
        self.marks = any(isinstance(block.call.node, jinja2.nodes.ExtensionAttribute) for block in blocks)

    def __repr__(self) -> str:
        """All that a rendering depends on."""
        dated = f", {self._today:%Y-%m-%d}" if self._dated else ""
        return f"Jinja({self.source!r}, {self.variables!r}{dated})"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        speak: bool = False,
        where: str = "messages",
    ) -> Rendering:
        """The conversation as text; with `speak`, up to where the assistant is to speak next."""
        try:
            text = self._template.render(
                {
                    "strftime_now": self._today.strftime,
                    **self.variables,
                    "messages": [_said(message) for message in messages],
                    "tools": [_plain(tool) for tool in tools] or None,
                    "documents": None,
                    "add_generation_prompt": speak,
                }
            )
        except jinja2.UndefinedError as error:
            raise Fault(f"{where}: {self.name} reads what is not there ({error.message})") from None
        except jinja2.TemplateError as error:
            raise Fault(f"{where}: {self.name} refuses the conversation: {error.message}") from None
        except Exception as error:  # a template is a program: whatever it does wrong, it does to this conversation
            raise Fault(f"{where}: {self.name} fails on the conversation ({type(error).__name__}: {error})") from None
        return _unmarked(text, f"{where}: {self.name}") if self.marks else Rendering(text, ())


class _Undefined(jinja2.Undefined):
    """What is not there prints as nothing, as in transformers, unless it was looked up by the name of a role: a table
    of headers without an entry for it would drop the header silently."""

    def __str__(self) -> str:
        if self._undefined_name in ROLES:
            self._fail_with_undefined_error()
        return ""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return OPEN + caller() + CLOSE


class _Dict:
    """`dict` as a template may use it, without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> jinja2.Environment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Undefined,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _refuse
    made.globals["dict"] = _Dict()
    return made


ENVIRONMENT = _environment()


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: plain data, no nulls (many templates would print them), its reasoning under
    the names that templates read."""
    said = {str(name): _plain(value) for name, value in message.items() if value is not None}
    reasoning = next((said[name] for name in REASONING if name in said), None)
    return said if reasoning is None else {"thinking": reasoning, **said, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Of exact JSON types, so that a template finds no methods that the sandbox does not know."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else f"<{type(value).__name__}>"


def _unmarked(text: str, where: str) -> Rendering:
    """The text without the marks, and where they were. Of nested ones the outer counts."""
    pieces, spans, at, depth, start = [], [], 0, 0, 0
    for piece in MARK.split(text):
        if piece == OPEN:
            start, depth = (start if depth else at), depth + 1
        elif piece == CLOSE:
            depth -= 1
            if depth == 0 and at > start:
                spans.append((start, at))
        else:
            pieces.append(piece)
            at += len(piece)
        if depth < 0:
            break
    if depth:
        raise Fault(f"{where} cannot mark what the assistant says: the text holds U+FDD0 or U+FDD1, which is no text")
    return Rendering("".join(pieces), tuple(spans))
