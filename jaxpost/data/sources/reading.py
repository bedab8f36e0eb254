# SPDX-License-Identifier: Apache-2.0
"""A path as rows: by what its name ends in, or by what a directory holds."""

import glob
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpost.data.sources import arrow, tfds
from jaxpost.data.sources.compressed import SUFFIXES, unpacked
from jaxpost.data.sources.documents import JsonRows
from jaxpost.data.sources.lines import JsonLines, TextLines
from jaxpost.data.sources.record import Cut, Joined, Rows, check_file
from jaxpost.data.sources.remote import downloaded, is_remote
from jaxpost.data.sources.separated import DELIMITERS, CsvRows
from jaxpost.data.sources.splits import chosen, split_in
from jaxpost.faults import Fault, nearest

# In which order a directory's files are taken for its rows: the last ones are as often notes about them.
READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".parquet": arrow.parquet,
    ".arrow": arrow.ArrowRows,
    ".feather": arrow.ArrowRows,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": CsvRows,
    ".tsv": lambda path, name: CsvRows(path, name, DELIMITERS[".tsv"]),
    ".json": JsonRows,
    ".txt": TextLines,
}


def read(path: str | Sequence[str], split: str = "", otherwise: Sequence[str] = ("train",)) -> Rows:
    """The rows at a path, or at several as one sequence.

    A path is a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt`, with `.gz` or `.zst` behind it or
    not), a pattern of files, or a directory: of such files, of a saved Hugging Face data set, of a prepared TFDS data
    set; here, or elsewhere (`gs://`, `s3://`, `https://`).

    `split` chooses where a directory or a JSON document has several (by its files' names, by its keys, where nothing
    else says it), and may be cut as in `train[:90%]`; where it is not given, the first of `otherwise` that is there is
    chosen. A pattern's files are all taken.
    """
    if not isinstance(path, str):
        parts = [read(one, split, otherwise) for one in path]
        if not parts:
            raise Fault("no paths of rows are given; name one at least")
        return parts[0] if len(parts) == 1 else Joined(parts, f"{parts[0].name} and {len(parts) - 1} more")
    local = downloaded(path) if is_remote(path) else Path(path).expanduser()
    if tfds.is_prepared(local):
        return tfds.TfdsRows(local, split or chosen("", otherwise, tfds.splits(local), path))
    name, cut = _cut(split, path)
    rows = _directory(local, path, name, otherwise) if local.is_dir() else _files(local, path, name, otherwise)
    return _taken(rows, cut, path, split) if cut else rows


def _files(local: Path, path: str, split: str, otherwise: Sequence[str]) -> Rows:
    if local.exists() or not glob.has_magic(str(local)):
        return _one(local, path, split, otherwise)
    found = sorted(map(Path, glob.glob(str(local), recursive=True)))
    if not found:
        raise Fault(f"no file fits {path}")
    return _joined(_of_split(found, split, (), path) if split else found, path, split, otherwise)


def _directory(local: Path, path: str, split: str, otherwise: Sequence[str]) -> Rows:
    if (local / "dataset_dict.json").is_file():
        known = json.loads((local / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        name = chosen(split, otherwise, known, path)
        return _saved(local / name, f"{path}/{name}")
    if (local / "state.json").is_file():
        return _saved(local, path)
    found = [file for file in sorted(local.rglob("*")) if file.is_file() and not _hidden(file.relative_to(local))]
    for suffix in READERS:
        if files := [file for file in found if _suffix(file) == suffix]:
            return _joined(_of_split(files, split, otherwise, path), path, split, otherwise)
    raise Fault(
        f"{path} holds no rows: neither files that end in {', '.join(READERS)}, nor a data set saved by Hugging Face's "
        "datasets (state.json) or prepared by TFDS (dataset_info.json and features.json)"
    )


def _saved(directory: Path, name: str) -> Rows:
    """A data set that `save_to_disk` wrote: its state lists the Arrow files, in order."""
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        files = [directory / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Fault(f"{name} is no data set saved by datasets: state.json is missing or damaged ({error})") from error
    if not files:
        raise Fault(f"{name} holds no rows")
    parts = [arrow.ArrowRows(file, f"{name}/{file.name}") for file in files]
    return parts[0] if len(parts) == 1 else Joined(parts, name)


def _joined(files: Sequence[Path], path: str, split: str, otherwise: Sequence[str]) -> Rows:
    parts = [_one(file, str(file), split, otherwise) for file in files]
    return parts[0] if len(parts) == 1 else Joined(parts, path)


def _one(file: Path, name: str, split: str, otherwise: Sequence[str]) -> Rows:
    suffix = _suffix(file)
    if suffix not in READERS:
        if file.suffix in SUFFIXES or not file.exists():
            check_file(file)
        raise Fault(
            f"{name}: rows are read from {', '.join(READERS)} files (also with .gz or .zst behind it) and from saved "
            f"Hugging Face or prepared TFDS data sets; {nearest(suffix, READERS)}"
        )
    check_file(file)
    plain = unpacked(file, name)
    rows = JsonRows(plain, name, split, otherwise) if suffix == ".json" else READERS[suffix](plain, name)
    if not rows.part and split not in ("", "train", _split_of(file)):
        raise Fault(f"{name} is one file, in which there is no split {split!r}; name the file of that split")
    return rows


def _suffix(file: Path) -> str:
    inner = file.with_suffix("") if file.suffix in SUFFIXES else file
    return inner.suffix.lower()


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _of_split(files: Sequence[Path], split: str, otherwise: Sequence[str], path: str) -> Sequence[Path]:
    """The files of a split; all of them where no name says of which it is and none was asked for."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(_split_of(file), []).append(file)
    known = [name for name in named if name]
    documents = all(_suffix(file) == ".json" for file in files)  # which may have splits in them
    # Files without names of splits are for training.
    if len(known) > 1 or (split and (known or (split != "train" and not documents))):
        return named[chosen(split, otherwise, known, path)]
    return files


def _split_of(file: Path) -> str:
    """By a whole word of the file's name, or else of its directory's; a word of no split stands for itself."""
    return split_in(file.name.partition(".")[0]) or split_in(file.parent.name)


def _cut(split: str, path: str) -> tuple[str, str]:
    name, bracket, rest = split.partition("[")
    if bracket and not rest.endswith("]"):
        raise Fault(f"{path}: no split {split!r}; a part of one is written train[:90%] or train[100:200]")
    return name, rest[:-1]


def _taken(rows: Rows, cut: str, path: str, split: str) -> Rows:
    """The part of the rows that `from:to` names, in rows or per cent, counted from the end where negative."""
    ends = re.fullmatch(r"(?:(-?\d+)(%?))?:(?:(-?\d+)(%?))?", cut)
    if ends is None:
        raise Fault(f"{path}: no part {split!r}; write train[:90%] or train[100:200]")
    size, found = len(rows), []
    for number, percent, default in ((*ends.group(1, 2), 0), (*ends.group(3, 4), size)):
        value = default if number is None else round(int(number) * size / 100) if percent else int(number)
        found.append(min(size, max(0, value + size if value < 0 else value)))
    if found[0] >= found[1]:
        raise Fault(f"{path} has {size} rows, of which {split!r} is none")
    return Cut(rows, *found)
