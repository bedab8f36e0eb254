# SPDX-License-Identifier: Apache-2.0
"""A little world in simple English: instruction tasks in clusters, and plain text to pre-train on.

Everything is generated: any number of examples from a seed, the same in every process. A model of a few million
parameters learns this world from `Documents` in minutes, and then `TASKS` teach it to follow instructions.
"""

from jaxpost.data.nano.clusters import (
    arithmetic,
    comparison,
    entailment,
    lists,
    paraphrase,
    reading,
    relations,
    sense,
    sentiment,
    spelling,
    structure,
    topics,
    tracking,
)
from jaxpost.data.nano.generated import Generated, Source
from jaxpost.data.nano.text import Documents
from jaxpost.data.tasks import Task

_FILES = (
    arithmetic,
    comparison,
    lists,
    spelling,
    relations,
    topics,
    sense,
    sentiment,
    entailment,
    paraphrase,
    reading,
    tracking,
    structure,
)
TASKS: dict[str, Task] = {task.name: task for file in _FILES for task in file.TASKS}
CLUSTERS: dict[str, tuple[str, ...]] = {
    file.TASKS[0].cluster: tuple(task.name for task in file.TASKS) for file in _FILES
}

__all__ = ["CLUSTERS", "TASKS", "Documents", "Generated", "Source"]
