# SPDX-License-Identifier: Apache-2.0
"""How good a review is: a score that nothing has to be learned for, against which a learned one can be held."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxpost.data.nano.scenes.opinions import BLAME, DETAILS, HATED, JUDGED, LIKED, OPENINGS, PRAISE
from jaxpost.data.nano.world import a
from jaxpost.data.tasks import Row

ENOUGH = 4  # a good review says so many different things
MUCH = 6  # and nobody reads more than these
FORGOTTEN = 0.6  # what is left of the score when something that was asked for is not praised
AGAIN = 0.5  # what a sentence is worth whose word of praise was used before


class Said(NamedTuple):
    """A sentence of a review: whether it praises, what it is about (None: no name), and its judging word."""

    good: bool
    about: str | None = None
    word: str | None = None


_PARTS = sorted({part for parts in JUDGED.values() for part in parts})
_SLOTS = {
    "item": f"(?P<item>{'|'.join(JUDGED)})",
    "part": f"(?P<part>{'|'.join(_PARTS)})",
    "word": f"(?P<word>{'|'.join((*PRAISE, *BLAME))})",
    "a_word": f"(?P<a_word>{'|'.join(map(a, (*PRAISE, *BLAME)))})",
    "unlike": f"(?P<unlike>{'|'.join((*PRAISE, *BLAME))})",
}


def _compiled(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern.replace("?", r"\?").replace(".", r"\.").format_map(_SLOTS)) for pattern in patterns)


_JUDGING, _LIKED, _HATED = _compiled((*OPENINGS, *DETAILS)), _compiled(LIKED), _compiled(HATED)


def sentences(text: str) -> list[str]:
    """The sentences of a text; the last one may be cut off."""
    return [found.strip() for found in re.findall(r"[^.!?]+[.!?]?", text) if found.strip()]


def read(sentence: str) -> Said | None:
    """What a sentence of a review says; None for everything else, and for what contradicts itself."""
    for pattern in _JUDGING:
        if found := pattern.fullmatch(sentence):
            said = found.groupdict()
            word = said.get("word") or (said.get("a_word") or "").partition(" ")[2]
            unlike = said.get("unlike")
            good = word in PRAISE if word else unlike in BLAME
            if word and unlike and (unlike in PRAISE) == good:
                return None
            return Said(good, said.get("item") or said.get("part"), word or f"not {unlike}")
    for good, patterns in ((True, _LIKED), (False, _HATED)):
        for found in filter(None, (pattern.fullmatch(sentence) for pattern in patterns)):
            return Said(good, found.groupdict().get("item"))
    return None


def gold(text: str, row: Row) -> float:
    """How good the review is of the row's `item` and of its `part`, if one is asked for: between 0 and 1.

    A sentence that praises the item or a part of it is worth 1 (half, if its word of praise was used before), one that
    blames it takes 1 away, and all others are worth nothing: what is no sentence of a review, is about something else
    or was said before. The score is the mean worth, of four sentences at least; beyond six it falls with their number,
    and by `FORGOTTEN` for each of item and part that no praise names. So four to six different praises that name what
    was asked for have 1, and repetition, length or a pet word bring it down.
    """
    item, part = row["item"], row.get("part")
    told = sentences(text)
    worth, seen, used, praised = 0.0, set[str](), set[str](), set[str]()
    for sentence in told:
        said = read(sentence)
        if said is None or sentence in seen or said.about not in (None, item, *JUDGED.get(item, ())):
            continue
        seen.add(sentence)
        if not said.good:
            worth -= 1
            continue
        worth += AGAIN if said.word in used else 1
        used.update(filter(None, [said.word]))
        praised.update(filter(None, [said.about]))
    missing = len({item, part} - {None} - praised)
    count = max(len(told), 1)
    return max(worth, 0.0) / max(count, ENOUGH) * min(1.0, MUCH / count) * FORGOTTEN**missing
