# SPDX-License-Identifier: Apache-2.0
"""One step, one loop, one checkpoint format, for every family and objective."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """`foundling.train` is a public function and this package: once a module of the package is imported, Python gives
    its name to the package. So the package is callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from foundling.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
