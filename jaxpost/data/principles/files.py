# SPDX-License-Identifier: Apache-2.0
"""Where a file of principles, prompts or examples lies: in a set that ships with the package, or anywhere else."""

from pathlib import Path

from jaxpost.data.sources.record import check_file
from jaxpost.faults import Fault

HERE = Path(__file__).parent
SETS = ("general", "nano")
FILES = {
    "principles": "principles.txt",
    "critique": "critique.txt",
    "revision": "revision.txt",
    "direct_revision": "direct_revision.txt",
    "reasoning": "reasoning.txt",
    "judge": "judge.txt",
    "reasoned_judge": "reasoned_judge.txt",
    "critique_examples": "critique_examples.jsonl",
    "revision_examples": "revision_examples.jsonl",
    "direct_revision_examples": "direct_revision_examples.jsonl",
    "reasoning_examples": "reasoning_examples.jsonl",
    "judge_examples": "judge_examples.jsonl",
    "reasoned_judge_examples": "reasoned_judge_examples.jsonl",
    "red_team": "red_team.jsonl",
}


def located(name: str, kind: str) -> Path:
    """The file of this kind in the built-in set of that name, or at that path."""
    if name in SETS:
        path = HERE / name / FILES[kind]
        if not path.is_file():
            have = ", ".join(one for one in SETS if (HERE / one / FILES[kind]).is_file())
            raise Fault(
                f"the set {name!r} has no {FILES[kind]}; write your own file{have and ', or take that of '}{have}"
            )
        return path
    path = Path(name).expanduser()
    if not path.exists():
        raise Fault(f"no file {name} ({kind.replace('_', ' ')}); give a path, or a built-in set: {', '.join(SETS)}")
    check_file(path)
    return path


def text_of(path: Path, kind: str) -> str:
    """What stands in the file, if it is text and says something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    if not text.strip():
        raise Fault(f"{path} holds nothing but blank lines, where {kind.replace('_', ' ')} are to stand")
    return text
