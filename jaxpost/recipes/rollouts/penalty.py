# SPDX-License-Identifier: Apache-2.0
"""What it costs a policy to leave its reference."""

from dataclasses import dataclass

from jaxpost import losses
from jaxpost.arrays import Array
from jaxpost.faults import Fault
from jaxpost.losses.kl import Estimator


@dataclass(frozen=True)
class Penalty:
    """What each token's distance from the reference costs: `coefficient` times an estimate of the KL in nats. With a
    `target`, the KL of a whole answer that is to be held, the coefficient follows it over `horizon` answers."""

    coefficient: float = 0.05
    kind: Estimator = "k1"
    target: float | None = None
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        for name, value in (("target", self.target), ("horizon", self.horizon)):
            if value is not None and not value > 0:
                raise Fault(f"penalty.{name} is {value}; it must be above 0")

    def followed(self, coefficient: Array, kl: Array, answers: int) -> Array:
        """The coefficient behind a step of so many answers, whose KL was this."""
        if self.target is None:
            return coefficient
        return losses.adaptive_coefficient(coefficient, kl, answers, target=self.target, horizon=self.horizon)
