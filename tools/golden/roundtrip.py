# SPDX-License-Identifier: Apache-2.0
"""How far each family is from transformers: the golden numbers, and a way through training and back.

For each family transformers makes a tiny random checkpoint with a byte-level tokenizer of its own; `jaxpost train`
tunes it with LoRA for a few steps on a CSV of prompts and completions, `jaxpost export` merges and writes it, and
transformers loads that. From the checkout, in an environment with the `parity` extra:

    python tools/golden/roundtrip.py ../shared/data/e2e_nlg/dev.csv --columns mr,ref [--python PYTHON]

The table's columns: the worst difference of logits alone or packed, padded on either side, read from the cache token by
token (those that choose a greedy continuation; the tokens are equal or the row says so), the worst relative difference
of a gradient's norm, and the worst difference between transformers' logits of the exported model and ours.
"""

import argparse
import copy
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # the checkout's tests, for our side of the golden numbers
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from cases import CASES as MADE  # noqa: E402
from families import randomised  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from jaxpost.interop import load  # noqa: E402
from jaxpost.kernels.attention import Rows  # noqa: E402
from jaxpost.models.decoder import logits  # noqa: E402
from tests.interop.golden import CASES, Ours  # noqa: E402

VOCABULARY, POSITIONS, STEPS, LENGTH = 512, 256, 6, 48
# Of each family, the case that is tuned.
TUNED = (
    "llama-llama3", "mistral-window", "qwen2-window", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "phi3",
    "mixtral", "qwen3_moe-sparse",
)  # fmt: skip
CONFIG = """from jaxpost.delta import Lora
from jaxpost.recipes import sft


def base():
    return sft.Config(
        run={run!r},
        model=sft.Pretrained({model!r}),
        delta=Lora(rank=4, alpha=8.0),
        data=sft.Files({data!r}, columns={columns!r}),
        batches=sft.Batches(rows=8, seq_len=192),
        optim=sft.Optimiser(lr=1e-2, warmup=1),
        train=sft.Training(steps={steps}, eval_every={steps}, eval_batches=1, save_every={steps}),
        review=sft.Review(examples=0, generations=0),
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", default="", help="with commas between; all by default")
    parser.add_argument("--columns", default="prompt,completion", help="the file's names of prompt and completion")
    parser.add_argument("--python", default=sys.executable, help="of the environment whose jaxpost tunes and exports")
    parser.add_argument("--only", choices=["golden", "tuning"], help="one half of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    columns = dict(zip(arguments.columns.split(","), ("prompt", "completion"), strict=True))
    print("| family | cases | logits | padding | decode | gradient | round trip (tuning moved logits by) |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for tuned in TUNED:
        family = tuned.split("-")[0]
        if not arguments.families or family in arguments.families.split(","):
            cells = ["" for _ in range(5)]
            if arguments.only != "tuning":
                cells = golden([name for name in CASES if name.split("-")[0] == family])
            if arguments.only != "golden":
                with tempfile.TemporaryDirectory() as folder:
                    cells.append(tune(tuned, Path(folder), arguments.data, columns, arguments.python))
            print(f"| {family} | {' | '.join(cells)} |", flush=True)


def golden(names: Sequence[str]) -> list[str]:
    """The worst of the family's cases."""
    found: dict[str, list[float]] = {"logits": [], "padding": [], "decode": [], "gradient": []}
    unequal = []
    for name in names:
        ours = Ours(name)
        found["logits"] += [ours.alone_error(), ours.logits_error("packed")]
        found["padding"] += [ours.logits_error("right"), ours.logits_error("left")]
        tokens, error = ours.continued()
        found["decode"].append(error)
        unequal += [] if np.array_equal(tokens, ours.numbers["greedy/tokens"]) else [name]
        with tempfile.TemporaryDirectory() as folder:
            found["gradient"] += [*ours.gradient_errors(Path(folder) / "gradients").values()]
    worst = [f"{max(errors):.1e}" for errors in found.values()]
    return [str(len(names)), *worst[:2], worst[2] + "".join(f" {name}: greedy differs" for name in unequal), worst[3]]


def tune(name: str, folder: Path, data: Path, columns: dict[str, str], python: str) -> str:
    """From transformers through `jaxpost train` and `jaxpost export` to transformers."""
    case = MADE[name]
    config = copy.deepcopy(case.config)
    config.vocab_size, config.max_position_embeddings = VOCABULARY, POSITIONS
    torch.manual_seed(0)
    model = randomised(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), case)
    model.save_pretrained(folder / "model", **{"max_shard_size": case.shard} if case.shard else {})
    with data.open(newline="", encoding="utf-8") as file:
        texts = [" ".join(row[column] for column in columns) for row in csv.DictReader(file)]
    tokenizer = byte_level(texts)
    tokenizer.save_pretrained(folder / "model")
    said = {"run": str(folder / "run"), "model": str(folder / "model"), "data": str(data.resolve())}
    (folder / "tuning.py").write_text(CONFIG.format(**said, columns=columns, steps=STEPS), encoding="utf-8")
    jaxpost(python, "train", str(folder / "tuning.py"))
    jaxpost(python, "export", str(folder / "run"), str(folder / "out"), "--to", "hf")

    tokens = torch.tensor([tokenizer.encode(text)[:LENGTH] for text in texts if len(text) > 4 * LENGTH][:4])
    before, after = theirs(folder / "model", tokens), theirs(folder / "out", tokens)
    error = np.max(np.abs(after - ours(folder / "out", tokens.numpy())))
    again = PreTrainedTokenizerFast.from_pretrained(folder / "out")
    assert again.encode(texts[0]) == tokenizer.encode(texts[0]), "the exported tokenizer is another"
    return f"{error:.1e} ({np.max(np.abs(after - before)):.1f})"


def byte_level(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer.json of the usual kind: byte-level pairs, and a BOS in front."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def jaxpost(python: str, *arguments: str) -> None:
    command = [python, "-m", "jaxpost.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def theirs(directory: Path, tokens: torch.Tensor) -> np.ndarray:
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits.numpy()


def ours(directory: Path, tokens: np.ndarray) -> np.ndarray:
    config, params = load(directory, dtype="float32")
    rows = Rows(jnp.ones(tokens.shape, jnp.int32), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
    return np.asarray(jax.jit(logits, static_argnums=0)(config, params, jnp.asarray(tokens, jnp.int32), rows))


if __name__ == "__main__":
    main()
