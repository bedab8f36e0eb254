# SPDX-License-Identifier: Apache-2.0
"""Edits to a parameter tree: what post-training changes, kept apart from what it changes."""

from jaxpost.delta.algebra import difference as difference
from jaxpost.delta.bind import bind as bind
from jaxpost.delta.bind import combine as combine
from jaxpost.delta.bind import fold as fold
from jaxpost.delta.bind import partition as partition
from jaxpost.delta.contract import Bound as Bound
from jaxpost.delta.contract import Edit as Edit
from jaxpost.delta.contract import Einsum as Einsum
from jaxpost.delta.contract import Ragged as Ragged
from jaxpost.delta.contract import Take as Take
from jaxpost.delta.contract import constrain_weights as constrain_weights
from jaxpost.delta.contract import contract as contract
from jaxpost.delta.contract import dense as dense
from jaxpost.delta.contract import einsum as einsum
from jaxpost.delta.contract import letters_of as letters_of
from jaxpost.delta.contract import ragged as ragged
from jaxpost.delta.contract import take as take
from jaxpost.delta.dense import Dense as Dense
from jaxpost.delta.dense import Full as Full
from jaxpost.delta.dense import formed as formed
from jaxpost.delta.insert import Insert as Insert
from jaxpost.delta.low_rank import Lora as Lora
from jaxpost.delta.low_rank import LowRank as LowRank
from jaxpost.delta.scale import Scale as Scale
from jaxpost.delta.scale import Scales as Scales
