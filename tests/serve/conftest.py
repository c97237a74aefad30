# SPDX-License-Identifier: Apache-2.0
"""One server that many tests ask. Those that need other options start their own (tests/serve/servers.py)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.servers import Live, save_model, serving


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder, a state-space model and an encoder-decoder."""
    root = tmp_path_factory.mktemp("served")
    return {
        "tiny": save_model(root / "tiny"),
        "recurrent": save_model(root / "recurrent", "mamba"),
        "translator": save_model(root / "translator", "t5"),
    }


@pytest.fixture(scope="session")
def live(directories: dict[str, Path]) -> Iterator[Live]:
    """Serves them to everybody, with every log-probability."""
    with serving(directories) as server:
        yield server
