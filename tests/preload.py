# SPDX-License-Identifier: Apache-2.0
"""Imported once by the server of tests/processes.py, before it forks."""

from tests.processes import import_everything

import_everything()
