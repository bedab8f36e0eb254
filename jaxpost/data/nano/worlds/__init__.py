# SPDX-License-Identifier: Apache-2.0
"""Little worlds to learn from preferences and rewards in, with the truth at hand to measure against.

- `answers`: the built-in tasks, each question with its right answer and a wrong one
- `reviews`: an open question, answers of mixed quality, and a gold score of them
- `manners`: an assistant that is right and, when provoked, rude
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxpost.data.nano.worlds import answers, manners, reviews, skills
from jaxpost.data.nano.worlds.drawn import Drawn, MakeRow
from jaxpost.data.nano.worlds.quality import gold
from jaxpost.data.tasks import Row, Split
from jaxpost.faults import Fault, nearest

WORLDS: dict[str, Mapping[str, MakeRow]] = {
    "answers": answers.makers(),
    "reviews": {
        "sft": reviews.sft,
        "prompts": reviews.prompts,
        "preference": reviews.preference,
        "weak": reviews.weak,
        "unpaired": reviews.unpaired,
        "ranking": reviews.ranking,
    },
    "manners": {
        "sft": skills.sft,
        "assistant": manners.assistant,
        "critique": skills.critique,
        "revision": skills.revision,
        "judge": skills.judge,
        "prompts": manners.red_team,
        "plain": manners.plain,
        "preference": manners.helpful,
        "harmless": manners.harmless,
    },
}
SIZES = {("reviews", "weak"): 400}  # few labels is what makes it weak
TRAIN, TEST = 30_000, 1_000


class Measure(NamedTuple):
    """Something that is true of an answer, from 0 to 1 (but for a taste), and the field that its row must have
    for it to apply."""

    of: Callable[[str, Row], float]
    field: str = ""

    def __call__(self, text: str, row: Row) -> float | None:
        return self.of(text, row) if not self.field or row.get(self.field) is not None else None


MEASURES = {
    "reviews_gold": Measure(gold, "item"),
    "reviews_taste": Measure(reviews.taste, "item"),
    "manners_rude": Measure(manners.rude),
    "manners_kind": Measure(manners.kind),
    "manners_right": Measure(manners.right, "answer"),
}


def rows(
    world: str, kind: str, split: Split = "train", *, seed: int = 0, size: int = 0, only: Sequence[str] = ()
) -> Drawn:
    """Rows of a world: `sft` (prompt, completion), `prompts`, `preference` (chosen, rejected) and what else there is.

    Row i is a function of (world, kind, split, seed, i). No prompt of the test split is in the train split, of any kind
    or seed. `size` 0 is the kind's own; `only` keeps these tasks or clusters of `answers`.
    """
    if world not in WORLDS:
        raise Fault(f"data.name: no world {world!r}; {nearest(world, WORLDS)}")
    if kind not in WORLDS[world]:
        raise Fault(f"data.kind: the world {world} has no kind {kind!r}; {nearest(kind, WORLDS[world])}")
    if only and world != "answers":
        raise Fault(f"data.only: the world {world} has no tasks to choose from; leave it empty, or take 'answers'")
    if size < 0:
        raise Fault(f"data.size is {size}; a number of rows, or 0 for the kind's own")
    make = (answers.makers(only) if only else WORLDS[world])[kind]
    size = size or (SIZES.get((world, kind), TRAIN) if split == "train" else TEST)
    return Drawn(world, kind, make, split, size, seed)
