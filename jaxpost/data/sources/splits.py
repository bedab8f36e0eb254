# SPDX-License-Identifier: Apache-2.0
"""Which split is meant: by its name, by words in the names of files and of lists, by what is there."""

import re
from collections.abc import Sequence

from jaxpost.faults import Fault, nearest

# Words in a name that say which split it belongs to, as the Hugging Face hub understands them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_in(name: str) -> str:
    """The split that a whole word of the name says, or nothing."""
    words = re.split(r"[-_. ]+|(?<=\D)(?=\d)", name.lower())
    return next((split for split, said in SPLITS.items() if any(word in words for word in said)), "")


def chosen(split: str, otherwise: Sequence[str], known: Sequence[str], where: str) -> str:
    """The split asked for, or the first of the others that is there, or the only one."""
    if split and split not in known:
        raise Fault(f"{where} has no split {split!r}; {nearest(split, known)}")
    found = [name for name in (split, *otherwise) if name in known] or (known if len(known) == 1 else [])
    if not found:
        raise Fault(f"{where} has the splits {', '.join(known)}, and not {' or '.join(otherwise)}; say which to read")
    return found[0]


def chosen_key(split: str, otherwise: Sequence[str], keys: Sequence[str], where: str) -> str:
    """The key of the split that is chosen: a split goes by its key, or by what a word of one key alone says."""
    if len(keys) == 1 and not split:
        return keys[0]
    said = [split_in(key) for key in keys]
    meant = {word: key for word, key in zip(said, keys, strict=True) if word and said.count(word) == 1}
    meant |= {key: key for key in keys}
    return meant[chosen(split, otherwise, list(meant), where)]
