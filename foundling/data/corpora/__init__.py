# SPDX-License-Identifier: Apache-2.0
"""Built-in data: corpora that are here already, so that nothing is downloaded. Each module has `load()` and LICENCE."""

from collections.abc import Iterable
from importlib import import_module

from foundling.data.sources import Document
from foundling.errors import DataError

CORPORA = {
    "stdlib": "foundling.data.corpora.stdlib",
}


def corpus(name: str) -> Iterable[Document]:
    """Return the documents of the built-in corpus `name`, re-iterable. Raises DataError for an unknown name."""
    if name not in CORPORA:
        raise DataError(f"there is no built-in corpus {name!r}: expected one of {', '.join(CORPORA)}")
    return import_module(CORPORA[name]).load()
