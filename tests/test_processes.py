# SPDX-License-Identifier: Apache-2.0
"""What a child of tests/processes.py starts with."""

import json
import sys

import pytest

from tests.processes import ROOT, run

SCRIPT = """
import json, os, sys
names = sorted(m for m in sys.modules if m.startswith("foundling"))
print(json.dumps([os.getcwd(), os.environ.get("OF_A_TEST"), names]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_child_has_the_imports_and_only_its_own_environment(tmp_path, monkeypatch) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_A_TEST", "1")
    done = run([str(file)])
    cwd, variable, modules = json.loads(done.stdout)
    assert (cwd, variable) == (str(tmp_path), "1"), "by default those of the test"
    assert {"foundling.train.loop", "foundling.cli", "foundling.models.decoder.llama"} <= {*modules}
    done = run([str(file)], cwd=ROOT, env={})
    assert json.loads(done.stdout)[:2] == [str(ROOT), None]
