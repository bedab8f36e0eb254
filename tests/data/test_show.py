# SPDX-License-Identifier: Apache-2.0
import pytest
from rich.console import Console

from jaxpost.data.batches.loader import Loader
from jaxpost.data.show import show
from jaxpost.data.sources import Record

ROW = Record({"prompt": "The cat [bold]", "completion": "sat 漢 on [/bold] it"}, "train.jsonl:3")


def plain(texts):
    console = Console(force_terminal=False, color_system=None, width=500)
    with console.capture() as capture:
        for text in texts:
            console.print(text)
    return capture.get()


def test_what_is_trained_is_marked_without_colour(tokenizer):
    head, *body = plain(show([ROW], tokenizer)).splitlines()
    assert body == ["<s>The cat [bold]", "⟦sat 漢 on [/bold] it</s>⟧"]
    batch = Loader([ROW], tokenizer, 1, 128).next()
    tokens, trained = int((batch["segments"] > 0).sum()) + 1, int(batch["mask"].sum())
    assert head == f"train.jsonl:3 · {tokens} tokens, {trained} trained"


def test_training_on_everything_and_without_a_bos(tokenizer, folding):
    assert plain(show([{"text": "The cat"}], folding)).splitlines()[1:] == ["⟦The cat</s>⟧"]
    assert plain(show([ROW], tokenizer, train_on="all")).splitlines()[1:] == [
        "<s>⟦The cat [bold]",
        "sat 漢 on [/bold] it</s>⟧",
    ]


def test_special_tokens_that_the_text_holds_are_shown_once(tokenizer):
    assert plain(show([{"text": "<s>The cat</s>"}], tokenizer)).splitlines()[1:] == ["<s>⟦The cat</s>⟧"]


def test_a_conversation(tokenizer):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert plain(show([row], tokenizer)).split("\n", 1)[1] == (
        "<s>User:\nHi\nAssistant:\n⟦Hello\n⟧User:\nBye\nAssistant:\n⟦Ciao</s>⟧\n"
    )


def test_what_a_row_cannot_hold_is_not_marked(tokenizer):
    (shown,) = show([{"text": "The cat sat on the mat"}], tokenizer, seq_len=4)
    assert shown.plain.split("\n", 1)[0].endswith("cut off") and " 5 tokens, 4 trained" in shown.plain
    kept = tokenizer.decode(tokenizer.encode("The cat sat on the mat")[:4])
    assert f"⟦{kept}⟧" in shown.plain
    struck = [shown.plain[span.start : span.end] for span in shown.spans if "strike" in str(span.style)]
    assert len(struck) == 1 and shown.plain.endswith("⟧" + struck[0]) and struck[0].endswith("</s>")


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_the_order_is_the_loaders(tokenizer, seed):
    rows = [Record({"text": f"number {i}"}, f"f:{i}") for i in range(20)]
    heads = [text.plain.split(" ·")[0] for text in show(rows, tokenizer, 4, seed)]
    loader = Loader(rows, tokenizer, 4, 32, seed=seed)
    assert heads == [loader.where(n) for n in range(4)]
    if seed is None:
        assert heads == ["f:0", "f:1", "f:2", "f:3"]


def test_no_more_than_there_are(tokenizer):
    assert len(list(show([ROW], tokenizer, 7))) == 1


def test_a_models_own_template(qwen):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert plain(show([row], qwen)).split("\n", 1)[1] == (
        "<|im_start|>system\nBe of use.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "⟦Hello<|im_end|>⟧\n\n"
    )
