# SPDX-License-Identifier: Apache-2.0
"""The version of the release. Imports nothing large."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    try:
        return version("foundling")
    except PackageNotFoundError:
        return "(from a source tree)"
