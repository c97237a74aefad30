# SPDX-License-Identifier: Apache-2.0
"""`stdlib`: the source files of the running Python's standard library, about 12 MB in 700 files."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from foundling.data.sources import Source
from foundling.data.streams import Skip

# Its tests are as large as the library and have broken encodings on purpose; the rest is not the library.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Stdlib(Source):
    """Every .py file of the standard library, one document each. Raises DataError if this Python ships none."""

    def __init__(self):
        super().__init__(sysconfig.get_path("stdlib"))

    def paths(self) -> Iterator[Path | Skip]:
        return (path for path in super().paths() if isinstance(path, Skip) or path.suffix == ".py")

    def _left_out(self, name: str) -> bool:
        return super()._left_out(name) or name in _LEFT_OUT or name.startswith("config-")


def load() -> Stdlib:
    return Stdlib()
