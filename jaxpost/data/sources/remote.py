# SPDX-License-Identifier: Apache-2.0
"""Files elsewhere (gs://, s3://, https:// and what else fsspec knows): downloaded once, then read as local ones."""

import posixpath
import urllib.error
import urllib.request
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from jaxpost.data.sources.stored import kept, note
from jaxpost.faults import Fault

CHUNK = 4 << 20
MAGIC = "*?["


def is_remote(path: str) -> bool:
    return "://" in path


def downloaded(url: str, patterns: Sequence[str] = ()) -> Path:
    """Where the file, or the directory with all files in it, lies in the cache; of a pattern, the directory of what
    fits. Of a directory only what fits one of `patterns`, if there are any: `*.json` is in it, `sub/*.json` below.
    What changed since it was downloaded is downloaded again."""
    scheme = url.partition("://")[0]
    try:
        if scheme in ("http", "https"):
            if patterns:
                raise Fault(f"{url}: the web lists no files of a directory; copy it here and name the copy")
            return _web(url)
        return _stored(url, scheme, patterns)
    except Fault:
        raise
    except FileNotFoundError as error:
        raise Fault(f"no file {url}: {_reason(error)}") from error
    except urllib.error.HTTPError as error:
        missing = error.code in (404, 410)
        raise Fault(f"{'no file ' if missing else ''}{url}: {error.code} {error.reason}") from error
    except ImportError as error:
        raise Fault(f"to read {scheme}:// paths, install what the message names: {error}") from error
    except PermissionError as error:
        raise Fault(f"{url} may not be read with the credentials at hand: {_reason(error)}") from error
    except Exception as error:  # every backend has its own for a missing network, name or permission
        raise Fault(
            f"{url} cannot be reached ({type(error).__name__}: {_reason(error)}); check the network and the name, or "
            "copy the file here and name the copy"
        ) from error


def _web(url: str) -> Path:
    request = urllib.request.Request(url, headers={"User-Agent": "jaxpost"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        head = answer.headers
        size = int(head.get("Content-Length") or 0)
        of = f"{url} {size} {head.get('ETag')} {head.get('Last-Modified')}"
        name = posixpath.basename(url.partition("?")[0]) or "index"
        return kept(of, name, lambda to: _copy(answer, to, url, size))


def _stored(url: str, scheme: str, patterns: Sequence[str]) -> Path:
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise Fault(f"{url}: no way to read {scheme}:// is known; copy the file here and name the copy")
    store, path = fsspec.core.url_to_fs(url)
    whole = any(sign in path for sign in MAGIC)
    if not whole and store.isfile(path):
        info = store.info(path)
        return kept(_of(url, info), posixpath.basename(path), lambda to: _fetch(store, path, to, url))
    if whole:
        base = path[: next(i for i, sign in enumerate(path) if sign in MAGIC)].rpartition("/")[0]
        files = store.glob(path, detail=True)
    else:
        depth = max((pattern.count("/") + 1 for pattern in patterns), default=None)
        base, files = path, store.find(path, maxdepth=depth, detail=True)
    files = {name: info for name, info in files.items() if info.get("type") == "file"}
    if patterns:
        files = {name: info for name, info in files.items() if _fits(posixpath.relpath(name, base), patterns)}
    if not files:
        raise Fault(f"no file {url}")
    of = " ".join(_of(name, info) for name, info in sorted(files.items()))

    def make(to: Path) -> None:
        for name in sorted(files):
            target = to / posixpath.relpath(name, base)
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(store, name, target, f"{scheme}://{name.lstrip('/')}")

    return kept(f"{url} {of}", posixpath.basename(base.rstrip("/")) or "all", make)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _of(name: str, info: Any) -> str:
    """What tells a file from the same one changed, as far as its store says."""
    known = (info.get(key) for key in ("size", "etag", "ETag", "md5Hash", "crc32c", "mtime", "LastModified", "created"))
    return f"{name} {' '.join(map(str, known))}"


def _fetch(store: Any, name: str, to: Path, url: str) -> None:
    with store.open(name, "rb") as file:
        _copy(file, to, url, int(store.info(name).get("size") or 0))


def _copy(file: BinaryIO | Any, to: Path, url: str, size: int) -> None:
    done = 0
    with open(to, "wb") as copy:
        while chunk := _piece(file, url, done):
            copy.write(chunk)
            done += len(chunk)
            note(f"downloading {url}", done, size)
    if size and done != size:
        raise Fault(f"{url} broke off after {done} of {size} bytes; try again")


def _piece(file: BinaryIO | Any, url: str, done: int) -> bytes:
    try:
        return file.read(CHUNK)
    except Exception as error:  # every backend has its own for a lost connection
        raise Fault(f"{url} broke off after {done} bytes ({_reason(error)}); try again") from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
