# SPDX-License-Identifier: Apache-2.0
"""The files that stand around a vocabulary: names of special tokens, chat templates, what ends a turn."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxpost.data.chat.jinja import Jinja
from jaxpost.data.chat.template import BuiltIn, ByTools, Chat, Own
from jaxpost.data.tokenizers.virtual import NONE, Virtual
from jaxpost.faults import Fault

KEPT = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja", "generation_config.json"),
    *("tokenizer.model", "spiece.model", "*.tiktoken", "vocab.json", "merges.txt"),
)
"""What a tokenizer is read from, and saved as."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokens that models end a turn with, beside the eos with which they end a text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<turn|>")


@dataclass(frozen=True)
class Added:
    """A token that the vocabulary file does not have, or that text is searched for before it is tokenised. One that is
    `special` is left out of decoded text; white space at the sides that it strips becomes part of it."""

    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Directory:
    """The files, byte for byte, by name. `name` is the place, for messages."""

    name: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Directory":
        found = sorted({file for pattern in KEPT for file in path.glob(pattern) if file.is_file()})
        return cls(str(path), {str(file.relative_to(path)): file.read_bytes() for file in found})

    def with_template(self, file: str) -> "Directory":
        """The same, with another chat template in place of its own."""
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise Fault(f"no chat template at {file} ({error.strerror}); expected a Jinja file") from None
        kept = {name: content for name, content in self.files.items() if not name.endswith(".jinja")}
        return Directory(self.name, {**kept, "chat_template.jinja": content})

    def save(self, directory: str | Path) -> None:
        for name, content in self.files.items():
            target = Path(directory) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of these files; empty if there is none."""
        if name not in self.files:
            return {}
        try:
            found = json.loads(self.files[name])
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise Fault(f"{self.name}/{name}: not JSON, or cut short ({error})") from None
        if not isinstance(found, dict):
            raise Fault(f"{self.name}/{name}: must be a JSON object, not {type(found).__name__}")
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, and the older special_tokens_map.json where the former does not list its tokens."""
        config = self.json("tokenizer_config.json")
        return config if "added_tokens_decoder" in config else config | self.json("special_tokens_map.json")

    @cached_property
    def named(self) -> dict[str, str]:
        """The special tokens by the names that templates know them by, `bos_token` and so on."""
        texts = {name: _text(self.config.get(name)) for name in NAMED}
        return {name: text for name, text in texts.items() if text is not None}

    @cached_property
    def added(self) -> dict[int, Added]:
        """The tokens that the files add, by id."""
        decoder = self.config.get("added_tokens_decoder") or {}
        if not decoder:
            names = {*self.named.values(), *self.extra}
            return {
                int(i): Added(text, text in names, normalized=text not in names)
                for text, i in self.json("added_tokens.json").items()
            }
        flags = ("special", "lstrip", "rstrip", "normalized")
        try:
            return {
                int(i): Added(token["content"], *(bool(token.get(flag, False)) for flag in flags))
                for i, token in decoder.items()
            }
        except (TypeError, ValueError, KeyError, AttributeError):
            raise Fault(
                f"{self.name}/tokenizer_config.json: added_tokens_decoder must map ids to objects with a 'content'"
            ) from None

    @cached_property
    def extra(self) -> tuple[str, ...]:
        """More special tokens, without a name of their own."""
        found: list[str] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            given = self.config.get(name) or []
            texts = given.values() if isinstance(given, dict) else given
            found += [text for token in texts if (text := _text(token)) is not None]
        return tuple(dict.fromkeys(found))

    def sources(self) -> dict[str, tuple[str, str]]:
        """The chat templates: source and file of each, by name. Files take precedence over the config's entries."""
        found = {}
        for file in self.files:
            if file.endswith(".jinja"):
                name = "default" if file == "chat_template.jinja" else Path(file).stem
                try:
                    found[name] = (self.files[file].decode("utf-8").replace("\r\n", "\n"), file)
                except UnicodeDecodeError as error:
                    raise Fault(f"{self.name}/{file}: not UTF-8 at byte {error.start}") from None
        given = self.config.get("chat_template")
        if found or given is None:
            return found
        if isinstance(given, str):
            return {"default": (given, "tokenizer_config.json")}
        entries = given.items() if isinstance(given, dict) else None
        try:
            listed = entries or [(entry["name"], entry["template"]) for entry in given]
            return {name: (source + "", f"tokenizer_config.json ({name})") for name, source in listed}
        except (TypeError, KeyError):
            raise Fault(
                f"{self.name}/tokenizer_config.json: chat_template must be a string, or a list of objects with name "
                "and template"
            ) from None

    def template(self, named: Mapping[str, str], specials: Sequence[str]) -> BuiltIn | Own | ByTools:
        """The model's own template; the built-in one if it has none."""
        sources = self.sources()
        if not sources:
            return BuiltIn()
        made = {
            name: Own(Jinja(source, f"{self.name}/{file}", named), tuple(specials))
            for name, (source, file) in sources.items()
            if name in ("default", "tool_use")
        }
        if "default" not in made:
            raise Fault(
                f"{self.name}: of its chat templates ({', '.join(sorted(sources))}) none is named 'default'; rename "
                "the one to use"
            )
        return ByTools(made["default"], made["tool_use"]) if "tool_use" in made else made["default"]


class Described:
    """What a tokenizer is beside its vocabulary, from its directory: a base for every kind.

    `find` gives a token's id, or None; `specials` are the special tokens as text; `named` those with a name.
    """

    virtual: Virtual = NONE
    eos: int
    decode: Callable[..., str]
    piece: Callable[..., str]

    def _describe(
        self, directory: Directory, find: Callable[[str], int | None], named: dict[str, str], specials: Sequence[str]
    ) -> None:
        self.directory, self._find, self._named, self._specials = directory, find, named, tuple(specials)

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def template(self) -> BuiltIn | Own | ByTools:
        return self._template

    @property
    def ends(self) -> tuple[int, ...]:
        return self._ends

    @cached_property
    def _template(self) -> BuiltIn | Own | ByTools:
        return self.directory.template(self._named, self._specials)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        given = self.directory.json("generation_config.json").get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        told = [i for i in listed if isinstance(i, int)]
        stop = self.template.turns.stop if isinstance(self.template, Own) else ""
        found = (self._find(text) for text in (*TURN_ENDS, stop) if text and text in self._specials)
        return tuple(dict.fromkeys([self.eos, *told, *(i for i in found if i is not None)]))

    def save(self, directory: str | Path) -> None:
        """Every file that it was read from, byte for byte."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.directory.save(directory)

    def configure(self, chat: Chat) -> None:
        """Takes what a config says of the template's options and of the texts that begin turns."""
        options = {} if chat.thinking is None else {"enable_thinking": chat.thinking}
        response, instruction = self._spelt(chat.response), self._spelt(chat.instruction)
        if not (response or instruction or options or chat.today):
            return
        if isinstance(self.template, BuiltIn):
            raise Fault(
                f"{self.name}: it has no chat template for the config's chat.response, instruction, thinking or today; "
                "name a Jinja file as chat.template, or leave them out: the built-in template knows its turns"
            )
        self._template = self.template.configured(response, instruction, chat.today, **options)

    def _spelt(self, given: str | tuple[int, ...]) -> str:
        """Text as it is; tokens as the text that they stand for, special ones included."""
        if isinstance(given, str):
            return given
        texts, run = [], []
        for token in given:
            if (piece := self.piece(token)) in self._specials:
                texts += [self.decode(run), piece]
                run = []
            else:
                run.append(token)
        return "".join([*texts, self.decode(run)])

    def _end(self, told: int | None = None) -> int:
        """The eos: as the config names it, or else as `told`, or as generation_config.json says."""
        named = self._named.get("eos_token")
        found = None if named is None else self._find(named)
        if named is not None and found is None:
            raise Fault(f"{self.name}: its eos_token {named!r} is not in the vocabulary; name one that is")
        given = self.directory.json("generation_config.json").get("eos_token_id")
        ids = [found, told, *(given if isinstance(given, list) else [given])]
        end = next((i for i in ids if isinstance(i, int) and i >= 0), None)
        if end is None:
            raise Fault(
                f"{self.name}: nothing says with which token a text ends; name it as eos_token in a "
                "tokenizer_config.json beside it"
            )
        return end

    def _padding(self, *others: int | None) -> int:
        """A token for padding, which is told by segment 0 and never by its id: anything but the eos, whose meaning a
        reader of a batch must be able to trust."""
        names = (self._named.get(name) for name in ("pad_token", "unk_token"))
        ids = [*(self._find(text) if text else None for text in names), *others, 0, 1]
        return next(i for i in ids if i is not None and i >= 0 and i != self.eos)


def either(added: Mapping[str, Added]) -> re.Pattern[str]:
    """Finds the tokens in text, the longest of those that begin at a place."""
    space = ("", r"\s*")
    ordered = sorted(added, key=len, reverse=True)
    found = (space[added[text].lstrip] + re.escape(text) + space[added[text].rstrip] for text in ordered)
    return re.compile("|".join(found) or "(?!)")


def _text(token: Any) -> str | None:
    """A token is written as its text or as an object with it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
