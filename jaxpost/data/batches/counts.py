# SPDX-License-Identifier: Apache-2.0
"""What becomes of a run's examples on their way into batches."""

from dataclasses import dataclass


@dataclass
class Counts:
    """What became of the examples.

    `examples` were read, of which `truncated` were cut and `overlong` and `untrained` ones left out (some of the rest
    may still wait to be packed); `rows` of `positions` places were made of them, holding `tokens`, `trained` of them.
    Of what is compared, `equal`, `empty` and `tied` ones were left out, as they teach nothing; `asked` people said what
    is better in those that were read, and `agreeing` of them what the data say.
    """

    examples: int = 0
    tokens: int = 0
    trained: int = 0
    rows: int = 0
    positions: int = 0
    truncated: int = 0
    overlong: int = 0
    untrained: int = 0
    equal: int = 0
    empty: int = 0
    tied: int = 0
    asked: int = 0
    agreeing: int = 0

    @property
    def dropped(self) -> int:
        """Examples left out: too long, or with no trained token left once they were truncated, or of no use."""
        return self.overlong + self.untrained + self.useless

    @property
    def useless(self) -> int:
        """Examples that teach nothing at any length."""
        return self.equal + self.empty + self.tied

    @property
    def uses(self) -> str:
        """In words, what was left out because it teaches nothing, and how far people agreed; empty if neither was."""
        told = {"with equal answers": self.equal, "with an empty answer": self.empty, "with no best answer": self.tied}
        said = [f"{number:,} {what}" for what, number in told.items() if number]
        left = [f"{', '.join(said)} left out, as they teach nothing"] if said else []
        asked = (
            f"{100 * self.agreeing / max(1, self.asked):.1f} % of {self.asked:,} votes are for what is taken as best"
        )
        return "; ".join(left + ([asked] if self.asked else []))

    @property
    def fill(self) -> float:
        return self.tokens / max(1, self.positions)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: mine + getattr(other, name) for name, mine in vars(self).items()})
