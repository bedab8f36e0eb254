# SPDX-License-Identifier: Apache-2.0
"""What models are told when they criticise, revise and judge answers: principles, prompts and examples, all of them
files. The sets `general` and `nano` beside this file are to be copied and edited."""

from jaxpost.data.principles.files import SETS as SETS
from jaxpost.data.principles.files import located as located
from jaxpost.data.principles.principle import Principle as Principle
from jaxpost.data.principles.principle import ordered as ordered
from jaxpost.data.principles.principle import read as read
from jaxpost.data.principles.wording import Asked as Asked
from jaxpost.data.principles.wording import Wording as Wording
from jaxpost.data.principles.wording import plain as plain
from jaxpost.data.principles.wording import wording as wording
