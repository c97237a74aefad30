# SPDX-License-Identifier: Apache-2.0
"""The release, without importing what is heavy."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    try:
        return version("foundling")
    except PackageNotFoundError:
        return "(from a source tree)"
