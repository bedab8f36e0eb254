# SPDX-License-Identifier: Apache-2.0
"""Golden numbers for text: small tokenizers of several kinds, what transformers makes of text with them, and what its
`apply_chat_template` renders. Needs the `parity` extra:

    python tools/golden/chat.py

Templates and conversations are in tests/golden/chat, written by hand; tokenizers are trained here, on a few sentences.
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The cat sat on the mat and looked at the dog.",
    "How many apples does Anna have? She has 3 + 4 = 7 apples.",
    "user\nWhat is the colour of the sky?\nassistant\nThe sky is blue.\n\n",
    "Is that a good film? Yes, it was a very good film, and I would see it again. <think>\n\n</think>",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind. system\nBe of use.",
    "Where does the river run?  It runs through the green valley to the sea: été, Köln, naïve.",
] * 4
TEXTS = [
    *("", "The cat", " The  cat ", "a\nb\n\nc", "漢é🙂 x", "3 + 44 = 777", "it's I'M", "\t\tx\u3000y", "ﬁ½ é"),
    *(
        "<s>The</s> cat",
        "a <|end|>\n b",
        "x<|im_start|>user\nhi<|im_end|>\n",
        "<|eot_id|>The",
        "<bos>a<end_of_turn>\nb",
    ),
    *("[INST] a [/INST] b", "<think>a</think>", "<|im_end|><|im_end|> <|im_end|>", "</s>", " <unk> "),
]
SPECIAL = {
    "gpt2": ["<|endoftext|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "llama": ["<unk>", "<s>", "</s>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"],
    "unigram": ["<pad>", "</s>", "<unk>"],
}


def byte_level(kind: str, config: dict) -> tuple[Tokenizer, dict]:
    """As GPT-2's, Llama 3's and Qwen's: BPE over bytes."""
    made = Tokenizer(models.BPE())
    if kind == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[]
        ),
    )
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL[kind]])
    made.post_processor = processors.ByteLevel(trim_offsets=kind == "gpt2")
    if kind == "llama3":
        bos = SPECIAL[kind][0]
        dressed = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), dressed])
    if kind == "qwen":
        made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return made, config


def metaspace(kind: str, config: dict) -> tuple[Tokenizer, dict]:
    """As Llama 2's, Phi-3's and Gemma's: BPE over characters with bytes to fall back on."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    prefix = kind != "gemma"
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    if not prefix:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    sequence = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*sequence, decoders.Strip(" ", 1, 0)] if prefix else sequence)
    special = [*SPECIAL[kind], *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        [word for line in CORPUS for word in line.split(" ")],
        trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=special),
    )
    text = json.loads(made.to_str())  # the bytes are ordinary pieces, not special ones
    text["added_tokens"] = [token for token in text["added_tokens"] if not token["content"].startswith("<0x")]
    for token in text["added_tokens"]:
        token["rstrip"] = kind == "phi3" and token["content"].startswith("<|") and "endof" not in token["content"]
    made = Tokenizer.from_str(json.dumps(text))
    bos = {"gemma": "<bos>"}.get(kind, "<s>")
    if kind != "phi3":
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return made, config


def unigram(kind: str, config: dict) -> tuple[Tokenizer, dict]:
    """As T5's: unigram over white space that is folded; the eos is put behind every text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.normalizer = normalizers.Sequence([made.normalizer, normalizers.Strip()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=140, special_tokens=SPECIAL[kind], unk_token="<unk>", show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made, config


KINDS = {
    "gpt2": (byte_level, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "llama3": (byte_level, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "qwen": (
        byte_level,
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
    ),
    "llama2": (metaspace, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}),
    # A class that transformers 5 gives a pipeline of its own, whatever the file says.
    "llama": (
        metaspace,
        {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer", "legacy": False},
    ),
    "gemma": (metaspace, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    "phi3": (
        metaspace,
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"},
    ),
    "unigram": (
        unigram,
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": ["[INST]"]},
    ),
}
SPM_ADDED = [
    {"content": text, "special": special, "lstrip": False, "rstrip": False, "normalized": False}
    for text, special in [("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False)]
]
TEMPLATES = {
    "chatml": "qwen", "marked": "qwen", "llama2": "llama2", "llama3": "llama3", "gemma": "gemma", "zephyr": "llama2",
    "mistral": "llama2", "qwen3": "qwen", "phi3": "phi3", "features": "gpt2",
}  # fmt: skip


def main() -> None:
    logging.disable()
    for kind, (build, config) in KINDS.items():
        place = GOLDEN / "tokenizers" / kind
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        made, config = build(kind, config)
        made.save(str(place / "tokenizer.json"), pretty=False)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
        (place / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        theirs = AutoTokenizer.from_pretrained(place)
        found = {
            "bos": theirs("The cat").input_ids[0] == theirs.bos_token_id,
            "eos": theirs.eos_token_id,
            "size": len(theirs),
            "ids": {text: theirs(text, add_special_tokens=False).input_ids for text in TEXTS},
        }
        found["decoded"] = {text: theirs.decode(ids, skip_special_tokens=True) for text, ids in found["ids"].items()}
        (place / "golden.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        print(kind, len(theirs))
    sentencepieces()
    render()


def sentencepieces() -> None:
    """A SentencePiece model of the data folder, read as Llama's with and without `legacy`."""
    found, model = {}, "mistral-v1"
    added = {str(32000 + i): token for i, token in enumerate(SPM_ADDED)}
    for config in ({"add_bos_token": True, "legacy": True}, {"add_bos_token": True, "legacy": False}, {}):
        with tempfile.TemporaryDirectory() as place:
            file = GOLDEN.parents[2] / "shared" / "data" / "tokenizers" / f"{model}.model"
            shutil.copy(file, f"{place}/tokenizer.model")
            said = config | {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
            (Path(place) / "tokenizer_config.json").write_text(json.dumps(said))
            theirs = AutoTokenizer.from_pretrained(place)
            found[json.dumps([model, said])] = {
                "ids": {text: theirs(text, add_special_tokens=False).input_ids for text in TEXTS},
                "bos": theirs("The cat").input_ids[0] == theirs.bos_token_id,
            }
    (GOLDEN / "tokenizers" / "sentencepiece.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def render() -> None:
    conversations = json.loads((GOLDEN / "chat" / "conversations.json").read_text())
    everything = {}
    for style, kind in TEMPLATES.items():
        tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / kind)
        tokenizer.chat_template = (GOLDEN / "chat" / f"{style}.jinja").read_text()
        for name, talk in conversations.items():
            for speak in (False, True):
                everything[f"{style} {name} {'speak' if speak else 'whole'}"] = one(tokenizer, talk, speak, style)
    lines = [f"{json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}" for name, found in everything.items()]
    text = "{\n" + ",\n".join([f'"tokenizers": {json.dumps(TEMPLATES)}', *lines]) + "\n}\n"
    (GOLDEN / "chat" / "rendered.json").write_text(text)


def one(tokenizer, talk: dict, speak: bool, style: str) -> dict:
    options = {"tools": talk.get("tools"), "add_generation_prompt": speak}
    try:
        found = {"text": tokenizer.apply_chat_template(talk["messages"], tokenize=False, **options)}
    except Exception as error:
        return {"refused": type(error).__name__}
    mask = {"return_assistant_tokens_mask": True} if style == "marked" else {}
    tokens = tokenizer.apply_chat_template(talk["messages"], return_dict=True, **mask, **options)
    return found | {"ids": list(tokens["input_ids"])} | ({"mask": tokens["assistant_masks"]} if mask else {})


if __name__ == "__main__":
    main()
