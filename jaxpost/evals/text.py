# SPDX-License-Identifier: Apache-2.0
"""How an answer written as text is judged against its target. Every score lies between 0 and 1."""

import functools
from importlib.util import find_spec
from typing import Any

from jaxpost.faults import Fault

ROUGE_MISSING = "ROUGE needs the rouge-score package: pip install 'jaxpost[eval]'"


def normalise(text: str) -> str:
    """The text without what exact match ignores: letter case, and how much white space stands where. Punctuation,
    articles and accents stay: our targets are short answers, in which they mean something."""
    return " ".join(text.casefold().split())


def exact(answer: str, target: str) -> float:
    """1 if answer and target are the same after `normalise`, else 0."""
    return float(normalise(answer) == normalise(target))


def rouge(answer: str, target: str, stemmed: bool = False) -> dict[str, float]:
    """F1 of shared words (`rouge1`), shared pairs of words (`rouge2`) and the longest common subsequence of words
    (`rougeL`); Lin 2004, https://aclanthology.org/W04-1013.

    Words are runs of ASCII letters and digits in lower case, the rouge-score package's own rule; a text without any
    scores 0. T5 and FLAN report unstemmed figures; papers on summarisation often `stemmed` ones (Porter).
    """
    scores = _scorer(stemmed).score(target, answer)
    return {name: score.fmeasure for name, score in scores.items()}


def rouge_missing() -> str | None:
    """Why `rouge` cannot be used here, to be said where its scores would stand; None if it can."""
    return None if find_spec("rouge_score") else ROUGE_MISSING


@functools.cache
def _scorer(stemmed: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # the `eval` extra; takes a second to import
    except ImportError:
        raise Fault(ROUGE_MISSING) from None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmed)
