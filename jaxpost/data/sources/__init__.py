# SPDX-License-Identifier: Apache-2.0
"""Files as random-access rows that know where they are from: one module a format, `read` for any of them."""

from pathlib import Path

from jaxpost.data.sources.arrow import ArrowRows as ArrowRows
from jaxpost.data.sources.arrow import ParquetRows as ParquetRows
from jaxpost.data.sources.documents import JsonRows as JsonRows
from jaxpost.data.sources.lines import JsonLines as JsonLines
from jaxpost.data.sources.lines import TextLines as TextLines
from jaxpost.data.sources.reading import read as read
from jaxpost.data.sources.record import Cut as Cut
from jaxpost.data.sources.record import Joined as Joined
from jaxpost.data.sources.record import Record as Record
from jaxpost.data.sources.record import Rows as Rows
from jaxpost.data.sources.separated import CsvRows as CsvRows
from jaxpost.data.sources.stored import watched as watched
from jaxpost.data.sources.tfds import TfdsRows as TfdsRows


def jsonl(path: str | Path) -> JsonLines:
    """The rows of a JSON Lines file."""
    return JsonLines(path)


def csv(path: str | Path) -> CsvRows:
    """The rows of a CSV file whose first line names the fields. Every value is a string."""
    return CsvRows(path)
