# SPDX-License-Identifier: Apache-2.0
"""Models by name: a directory here, one at a URL (gs://, s3://), or a repository of the Hugging Face hub."""

import re
from functools import cache
from pathlib import Path

from jaxpost.data.sources import remote
from jaxpost.data.tokenizers.directory import KEPT
from jaxpost.faults import Fault
from jaxpost.interop.config_json import CONFIG
from jaxpost.interop.weights import INDEX, SINGLE, promises

_REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SMALL = (CONFIG, *KEPT, INDEX)
"""What is always fetched. Names are exact: beside them lie the same weights in other formats and under other names
(consolidated.safetensors, original/, onnx/)."""


def is_elsewhere(name: str) -> bool:
    """Whether the name is of a model that would be fetched: at a URL, or of the hub where no such path is here."""
    return remote.is_remote(name) or bool(_REPOSITORY.fullmatch(name) and not Path(name).exists())


def directory(name: str, weights: bool = True) -> Path:
    """Where the model of that name lies on this host, fetched if it does not lie here yet; without its `weights` if
    only its config and tokenizer are wanted.

    `org/name` or `org/name@revision` is a repository of the hub where no such directory is here. Those are kept in
    the cache of huggingface_hub, which also decides what HF_HUB_OFFLINE and a token mean; others in our own.
    """
    if remote.is_remote(name):
        return _remote(name.rstrip("/"), weights)
    found = _REPOSITORY.fullmatch(name)
    if found is None or not is_elsewhere(name):
        return Path(name)
    return _repository(found["name"], found["revision"], weights)


def _weights(directory: Path) -> tuple[str, ...]:
    """Which files the weights are in, where the small ones have been fetched: the index says how shards are named."""
    return SINGLE, *dict.fromkeys(promises(directory).values())


@cache
def _remote(url: str, weights: bool) -> Path:
    return remote.downloaded(url, (*_SMALL, *_weights(_remote(url, False))) if weights else _SMALL)


@cache
def _repository(name: str, revision: str | None, weights: bool) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise Fault(
            f"{name}: no such directory here, and to fetch it from the Hugging Face hub huggingface_hub is needed: "
            "pip install 'jaxpost[hf]'"
        ) from error
    patterns = [*_SMALL, *(_weights(_repository(name, revision, False)) if weights else ())]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise Fault(
            f"{name}: its owner wants to be asked first; ask at https://huggingface.co/{name}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Fault(
            f"{name}: neither a directory here nor a model on the Hugging Face hub; check the name, or `hf auth login` "
            "if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise Fault(f"{name}: the model on the Hugging Face hub has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:  # also when HF_HUB_OFFLINE is set
        raise Fault(
            f"{name}: no such directory here, nor in the cache of huggingface_hub, and the hub cannot be reached; "
            "fetch it where there is a network (`hf download`) and name the directory"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise Fault(f"{name}: could not be fetched from the Hugging Face hub ({error})") from error
