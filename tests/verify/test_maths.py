# SPDX-License-Identifier: Apache-2.0
"""Final answers and their equality: by hand, in the formats that data sets publish, and under changes of form."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.verify import symbolic
from foundling.verify.calculator import annotations, evaluate, without_annotations
from foundling.verify.exact import rational, value_of
from foundling.verify.expressions import NoExpression, parse
from foundling.verify.maths import Comparison, compare, equal, final_answer
from foundling.verify.number_words import read_words
from foundling.verify.numbers import read_decimal, read_quantity, show

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)

ANSWERS = [
    ("He eats <<3*24=72>>72 of them.\n#### 72", "72"),
    ("#### 1,234", "1234"),
    ("#### $5.00", "5"),
    ("#### Step 1: add\n5+3=8\n#### Step 2: more\nSo it is 9", "9"),
    ("A: 5", "5"),
    ("Q: How many?\nA: There are 3 + 2 = 5 of them.", "5"),
    ("Answer: 3/4", "3/4"),
    ("**Answer:** 42", "42"),
    ("The answer is $18.", "18"),
    ("The answer is 18 dollars.", "18"),
    ("The answer is:\n\n42", "42"),
    ("The answer is 5 because 3+2.", "5"),
    ("The answer is 10 - 2 = 8 apples.", "8"),
    ("The answer is **$1,250.50**.", "1250.5"),
    ("The answer is −5.", "-5"),
    ("The answer is 0.", "0"),
    ("The answer is about 3.5 million", "3500000"),
    ("The population is 5 million.", "5000000"),
    ("They pay $2.5 million for it.", "2500000"),
    ("The answer is 18 quarters.", "18"),
    ("#### 35 quarters", "35"),
    ("The answer is 1 quarter.", "1"),
    ("The answer is 3 dozen.", "3"),
    ("She needs 4 dozen eggs.", "4"),
    ("She buys 3 dozen, which is 36 eggs.", "36"),
    ("The answer is 3 third graders.", "3"),
    ("The answer is 5 hundred-dollar bills.", "5"),
    ("The answer is 6 root beers, 3 of them cold.", "6"),
    ("The answer is two dozen.", "24"),
    ("The answer is one hundred twenty.", "120"),
    ("The answer is two thirds.", "2/3"),
    ("The answer is negative 5.", "-5"),
    ("The answer is at least 5.", "5"),
    (r"so \boxed{0.\overline{3}}", "1/3"),
    (r"It is 0.1\overline{6} of it.", "1/6"),
    (r"\boxed{\frac{3}{4}\text{ cups}}", "3/4"),
    (r"\boxed{\frac{3}{4}\text{ over two}}", r"\frac{3}{4} over two"),
    ("It takes 4 hours and 20 minutes.", "4 hours and 20 minutes"),
    ("The answer is 2 hours 30 minutes.", "2 hours 30 minutes"),
    ("She is 5 feet 6 inches tall.", "5 feet 6 inches"),
    ("It takes 4 hours and 20 minutes, which is 260 minutes.", "260"),
    ("In 2 weeks he saves 3 dollars and 5 pounds.", "5"),
    ("So there are 10 apples (5 red, 5 green).", "10"),
    ("I think that it must be this one (5).", "5"),
    ("He is 25 years old, 5 years older than 20.", "25"),
    ("She has 5 apples left, which is 3 fewer than before.", "5"),
    ("With 8 dogs, he has 5 more than Tom.", "5"),
    ("Therefore, x = 3 or x = -2", "x = 3 or x = -2"),
    ("so $x = 3$ and $x = -2$.", "x = 3 and x = -2"),
    ("With x = 3 and y = 4 we get z = 5", "5"),
    ("The answer is D, not A.", "D"),
    ("The answer is A because it is odd.", "A"),
    ("The answer is A, B and C.", "A, B and C"),
    ("I choose option C", "C"),
    ("Ans: 42", "42"),
    ("Answer: Yes, because 2+2=4.", "Yes"),
    ("The answer is no.", "no"),
    ("The answer is 5 squared.", "5 squared"),
    ("So the answer is (B).", "B"),
    ("Answer: C. 5 apples", "C"),
    ("The correct option is (d)", "D"),
    ("So the answer is Yes.", "Yes"),
    ("So the answer is airlift bestial dreary.", "airlift bestial dreary"),
    ("So the answer is ] ] ).", "] ] )"),
    ("The answer is Albert Einstein.", "Albert Einstein"),
    ("The answer is 05/01/2021.", "05/01/2021"),
    ("The answer is 12:30.", "12:30"),
    ("He left at 12:30 p.m.", "12:30 p.m."),
    ("The answer is (1, 2).", "(1, 2)"),
    (r"so $x = \boxed{\frac{3}{4}}$.", "3/4"),
    (r"\boxed{\frac{x}{2}}", r"\frac{x}{2}"),
    (r"first \boxed{1}, then \boxed{\sqrt{\frac{a}{b}}}", r"\sqrt{\frac{a}{b}}"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{50\%}", "50%"),
    (r"\boxed{12\text{ cm}}", "12"),
    (r"\boxed{10,\!080}", "10080"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{\text{Tuesday}}", "Tuesday"),
    (r"The answer is \(2\sqrt{3}\).", r"2\sqrt{3}"),
    ("The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
    ("He has 3 + 39 = 42", "42"),
    ("In total Tom has 5 apples and 3 pears, which makes 8 fruits.", "8"),
    ("So Mr. Smith pays $40.", "40"),
    ("It weighs 1.5 × 10^3 g.", "1500"),
    ("So it is 50%.", "50%"),
    ("Final answer: 3 hours and 20 minutes", "3 hours and 20 minutes"),
    ("The answer is option (C) because 5 is odd.", "C"),
    ("I think the correct answer is **B**.", "B"),
    ("### Answer:\n\n**72 clips**", "72"),
    ("The answer is 3:2.", "3:2"),
    ("The answer is y = 2x + 1.", "y = 2x + 1"),
    ("The answer is 1/3 of the cake.", "1/3"),
    ("The temperature is -5°C.", "-5"),
    (r"\boxed{11,\! 111}", "11111"),
    (r"\boxed{\textbf{(C)}}", "C"),
    (r"\boxed 5", "5"),
    ("She pays $5", "5"),
    ("May 5", "May 5"),
    ("twenty-one", "21"),
    ("Die Antwort lautet 3,5.", "3.5"),
    ("La respuesta es 12.", "12"),
    ("La réponse est 1 234.", "1234"),
    ("Ответ — 5.", "5"),
    ("答えは72です。", "72"),
    ("答案是 72。", "72"),
    ("Jibu ni 9.", "9"),
    ("సమాధానం 7.", "7"),
    ("คำตอบคือ 8", "8"),
    ("", None),
    ("no idea about this one at all, sorry", None),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("answer", sorted({answer for _, answer in ANSWERS if answer}))
def test_a_final_answer_is_its_own_final_answer(answer: str) -> None:
    assert equal(final_answer(answer) or "", answer)


def number_of(text: str) -> Fraction | None:
    """The value of a number or an expression without variables."""
    if number := read_quantity(text):
        return number.value / 100 if number.percent else number.value
    return rational(value_of(parse(text)))


NUMBERS = [
    ("1,234,567", "1234567"), ("1 234 567", "1234567"), ("1'234", "1234"), ("1.234.567", "1234567"),
    ("1.234.567,89", "1234567.89"), ("1,234.5", "1234.5"), ("12,34,567", "1234567"), ("3,5", "3.5"), ("3,500", "3500"),
    ("0,500", "0.5"), ("1.234", "1.234"), ("3/4", "3/4"), ("6/8", "3/4"), ("1 1/2", "3/2"), ("½", "1/2"), ("1½", "3/2"),
    ("-½", "-1/2"), ("−5", "-5"), ("(5)", "5"), ("1.5e3", "1500"), ("2.5×10⁻²", "0.025"), ("10^{-2}", "0.01"),
    ("50%", "50%"), ("50 percent", "50%"), ("$-5", "-5"), ("-$5", "-5"), ("USD 5", "5"), ("5 km/h", "5"), ("45°", "45"),
    ("five", "5"), ("twenty-one", "21"), ("5 apples left", "5"), ("٣٫", None), ("२५", "25"), ("1,2,3", None),
    ("1,23,4", None), ("2x", None), ("12:30", None), ("May 5", None), ("9**9", None), ("(1,2)", None), ("", None),
    ("1e999999999", None), ("1/0", None), ("nan", None), ("--5", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers(text: str, value: str | None) -> None:
    number = read_quantity(text)
    assert (None if number is None else str(number)) == value


EQUAL = [
    ("$18", "18 dollars"), ("1 m", "100 cm"), ("2 hours", "120 minutes"), ("5 km", "5"), ("0.5", "1/2"), ("50%", "1/2"),
    ("50%", "50"), ("1,234", "1234"), ("x=5", "5"), ("5", "x = 5"), (r"\frac{\pi}{2}", "π/2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), (r"\sqrt[3]{8}", "2"), (r"\dfrac12", "0.5"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\{1,2\}", "{2, 1}"), ("1, 2", "2, 1"), (r"x = 1 \text{ or } x = 2", "1, 2"), ("[2,5)", r"\left[2, 5\right)"),
    ("x<3", r"(-\infty,3)"), (r"1 \le x < 4", "[1,4)"), ("3 > x", "x < 3"), ("(B)", "B"), ("(b)", "B"), ("yes", "Yes"),
    ("10!", "3628800"),
    ("pi", r"\pi"), ("x", "1x"),
    (r"3\sqrt{2}\text{ cm}", r"3\sqrt{2}"), ("-5°C", "-5"), ("5 or 6", "6, 5"), (r"\binom{5}{2}", "10"),
    (r"|-3|", "3"), ("**42**", "42"), (r"$\text{Monday}$", "monday"),
    ("18 quarters", "18"), ("3 dozen", "3"), ("two dozen", "24"), ("two thirds", "2/3"), ("1 quarter", "1"),
    ("6 root beers", "6"), ("14 power tools", "14"), ("4 log cabins", "4"), ("5 product lines", "5"),
    ("7 half-gallon jugs", "7"), ("12 six-packs", "12"), ("5 ten-dollar bills", "5"), ("5 hundred-dollar bills", "5"),
    ("2 and a half", "5/2"), ("3 and three quarters", "3.75"), ("5 and a half dozen", "5.5"),
    ("1010_2", "10"), ("nan", "nan"), (r"3 \pm \sqrt2", r"3+\sqrt2, 3-\sqrt2"), ("five", "5"), ("1 e 3", "1 e 3"),
    (r"\begin{pmatrix} 1 \\ 1/2 \end{pmatrix}", r"\begin{pmatrix}1\\0.5\end{pmatrix}"), ("2^{10}", "1024"),
]  # fmt: skip
UNEQUAL = [
    ("5 km", "5 miles"), ("0.33", "1/3"), ("50%", "0.05"), ("(1,2)", "(2,1)"), ("[2,5)", "[2,5]"), ("(1,2)", "1.2"),
    ("B", "C"), ("no", "on"), ("yes", "no"), ("x=5", "6"), ("(1,2)", "{1,2}"), (r"\sqrt{2}", "1.41421356"),
    (r"\pi", "3.14159"), ("1, 1, 2", "1, 2, 2"), ("x<3", "x<=3"), ("x<3", "x>3"), ("nan", "0"), ("", "0"),
    ("1/0", "2/0"), ("10", "1010"), ("Monday", "Tuesday"), ("5 dollars", "5 euros"), ("inf", "-inf"),
    ("__import__('os').system('id')", "1"),
    ("5 million", "5 billion"), ("5 million", "5"), ("one hundred", "1"), ("two thirds", "2"), ("one half", "1"),
    ("4 pi", "4"), ("5 squared", "5"), ("2 sqrt three", "2"), ("3 infinity", "3"), ("5 factorial", "5"),
    ("5 or six", "5"), ("5 dollars or six", "5"), ("10 less than x", "10"), ("3 divided by four", "3"),
    ("3 over n", "3"), ("2 times x", "2"), ("2 and a half", "2"), ("2xy", "2"), ("3 hours and twenty minutes", "3"),
    (r"0.\overline{3}", "0"), (r"0.\overline{3}", "0.3"), (r"0.\overline{3}", "0.333"), ("half-life", "1/2"),
    (r"\cos 60^\circ", r"\cos 60"), ("sin(30°)", "sin(30)"),
    ("4 log of x", "4"), ("2 root b", "2"), ("2 root two", "2"), ("5 to the fourth power", "5"), ("5 one-half", "5"),
    ("3 dozen and a half", "3"), ("3 dozen or four", "3"), ("3 hours and a quarter", "3"), ("18 quarters", "9/2"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(a: str, b: str) -> None:
    assert equal(a, b) and equal(b, a)


@pytest.mark.parametrize(("a", "b"), UNEQUAL)
def test_unequal(a: str, b: str) -> None:
    assert not equal(a, b) and not equal(b, a)


TEENS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen"""
ONES = ["", *TEENS.split()]


def spelled(value: int, link: str) -> str:
    """In words, as English has it: 120 as "one hundred and twenty"."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            between = f" {link} " if size == 100 and link else " "
            return f"{spelled(value // size, link)} {name}{between}{spelled(rest, link)}".strip().removesuffix(
                f" {link}"
            )
    if value < 20:
        return ONES[value]
    tens = {2: "twen", 3: "thir", 4: "for", 5: "fif", 8: "eigh"}.get(value // 10, ONES[value // 10])
    return f"{tens}ty-{ONES[value % 10]}".strip("-")


@given(st.integers(1, 10**12 - 1), st.sampled_from(["", "and"]), st.sampled_from(["", " apples", " dollars left"]))
def test_numbers_in_words(value: int, link: str, behind: str) -> None:
    words = spelled(value, link)
    assert read_words(words) == (value, len(words))
    assert equal(words.capitalize() + behind, str(value))
    assert not equal(words, str(value + 1))


SYMBOLIC = [
    (r"\cos 60^\circ", "1/2", True), (r"\sin(30°)", "0.5", True), (r"\tan{45^{\circ}}", "1", True),
    (r"\cos 60", "1/2", False), (r"0.\overline{3}x", "x/3", True),
    ("x^2-1", "(x+1)(x-1)", True), ("x+y", "y+x", True), (r"\frac{1}{x}", "x^{-1}", True), ("y=2x+1", "2x+1", True),
    ("y=2x+1", "y-2x=1", True), (r"\sin^2 x + \cos^2 x", "1", True), (r"\log_2 8", "3", True),
    (r"e^{i\pi}", "-1", True),
    (r"\ln(e^2)", "2", True), (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1", True), ("x^2-1", "x^2+1", False),
    ("2x=4", "x=3", False), ("x+y", "x-y", False), ("(x, x^2)", "(x, x*x)", True), (r"\tan x", r"\cot x", False),
]  # fmt: skip


@needs_math_verify
@pytest.mark.parametrize(("a", "b", "same"), SYMBOLIC)
def test_expressions(a: str, b: str, same: bool) -> None:
    assert compare(a, b) == compare(b, a) == Comparison(same, "expression")


def test_without_math_verify_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(symbolic, "available", lambda: False)
    assert compare("x^2-1", "(x+1)(x-1)") == Comparison(False, "math-verify is not installed")
    assert compare(r"2\sqrt{3}", r"\sqrt{12}") == Comparison(True, "expression")
    assert compare("0.5", "1/2") == Comparison(True, "number")


BOMBS = ["9**9**9**9", "9^{9^{9^9}}", "x^{99999999}", "100000!", "2^{-99999999}", "\\binom{99999}{500}"]


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end(bomb: str) -> None:
    assert equal(bomb, bomb)
    assert not equal(bomb, "x + 1")


@needs_math_verify
@pytest.mark.slow
@pytest.mark.parametrize("bomb", ["(x+1)^{1999}", "((((1+x)^99)^99)^99)", "\\sin(10^{1000})"])
def test_what_takes_too_long_is_undecided_or_unequal(bomb: str) -> None:
    """The process ends at its limit of processor time; the next comparison starts another."""
    assert not equal(bomb, "x + 1")
    assert equal("x^2-1", "(x+1)(x-1)")


@pytest.mark.parametrize(
    "unit",
    [
        "9",
        "{",
        "\\boxed{",
        "(1",
        "$",
        "a b. ",
        "1,",
        "=1",
        "*",
        "answer is ",
        " ",
        "-",
        "1 ",
        "#",
        "\\",
        "\\text{",
        "'1",
        "1/",
        "A:",
        "<<1=1>>",
    ],
)
def test_long_texts_end(unit: str) -> None:  # fmt: skip
    text = unit * (1_000_000 // len(unit))
    assert final_answer(text + ":9") != ""
    answer = final_answer(text)
    assert answer is None or len(answer) <= 4_000
    assert equal(text, text)
    assert not equal(text, text + "1")


def test_long_answers_are_compared_whole() -> None:
    for n in (3_999, 4_000, 4_001, 9_000):
        assert not equal("9" * n + "1", "9" * n + "2")
        assert equal("9" * n, f" {'9' * n}")


def test_no_text_is_evaluated(tmp_path) -> None:
    """What SymPy's parser would run as Python is no expression here."""
    target = tmp_path / "written"
    for text in (f"open('{target}','w')", f"__import__('os').mkdir('{target}')", f"x.__class__('{target}')"):
        assert not equal(text, "x")
        final_answer(f"The answer is ${text}$.")
        with pytest.raises(NoExpression):
            parse(text)
    assert not target.exists()


# --- published formats, from an answer that is known ------------------------------------------------------------------

WHOLE = st.integers(-(10**9), 10**9)
FORMATS = {
    "GSM8K": "She sells 48/2 = <<48/2=24>>24 clips in May.\n{sep} clips is it.\n#### {sep}",
    "GSM8K, chain of thought": "There were 21 trees. So there must have been 15 - 7. The answer is {sep}.",
    "MATH": "We have $x^2 = 9$ and so\n\\[x = \\boxed{{{latex}}}.\\]",
    "MATH, Minerva": "Then $y=2$, so $\\boxed{{{latex}}}$.\nFinal Answer: "
    "The final answer is ${latex}$. I hope it is correct.",
    "BBH": "Remember that (i) 3 and (ii) 4 are numbers.\nSo we get 12. So the answer is {plain}.",
    "SVAMP": "Each pack costs $76. The discount is 25.\nAnswer: {plain}",
    "A:": "Q: How many are 5 of 7?\nA: {plain}",
    "sentence": "Ann has 5 boxes with 12 pens each, so she has {sep} pens in total.",
    "equation": "5 * 12 + 3 = 63, and therefore x = {plain}",
    "money": "In total they earn 3 times as much, which is ${sep}.",
    "bold": "We add 3 and 4.\n\n**Answer: {sep}**",
    "German": "Zuerst 5 und dann 6. Die Antwort lautet {plain}.",
    "Japanese": "最初に5個。答えは{plain}です。",
}


@given(st.sampled_from(list(FORMATS)), WHOLE)
def test_published_formats(name: str, value: int) -> None:
    if name == "money" and value < 0:
        value = -value
    text = FORMATS[name].format(sep=f"{value:,}", plain=value, latex=f"{value:,}".replace(",", "{,}"))
    assert final_answer(text) == str(value)


@given(st.sampled_from(["The answer is ({x}).", "So the answer is ({x}).", "Answer: {x}", "The correct option is {x}.",
                        "Answer: {x}) it is 5", "**{x}**", "\\boxed{{\\text{{{x}}}}}", "({x})", "#### {x}"]),
       st.sampled_from("ABCDE"))  # fmt: skip
def test_options_of_mmlu_aqua_and_bbh(form: str, letter: str) -> None:
    assert final_answer(f"Let's think step by step. There are 7 of 12.\n{form.format(x=letter)}") == letter


@given(st.integers(-500, 500), st.integers(1, 500))
def test_fractions_in_every_form(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    sign, size = ("-" if top < 0 else ""), abs(top)
    forms = [
        f"{top}/{bottom}",
        f"{sign}\\frac{{{size}}}{{{bottom}}}",
        f"\\frac{{{top}}}{{{bottom}}}",
        f"{top * 3}/{bottom * 3}",
    ]
    if size > bottom and size % bottom:
        whole, rest = divmod(size, bottom)
        forms += [f"{sign}{whole} {rest}/{bottom}"] + [f"{whole}\\frac{{{rest}}}{{{bottom}}}"] * (not sign)
    for form in forms:
        assert number_of(form) == value, form
        assert final_answer(f"So it is $\\boxed{{{form}}}$.") == show(value, ratio=True)
        for other in forms:
            assert equal(form, other)
        assert not equal(form, f"{top + 1}/{bottom}")


@given(WHOLE, st.integers(0, 999))
def test_separators_do_not_change_a_number(whole: int, part: int) -> None:
    value = Fraction(f"{whole}.{part:03d}")
    english = f"{whole:,}.{part:03d}"
    forms = [f"{whole}.{part:03d}", english, english.replace(",", " ")]
    if abs(whole) >= 1000:
        forms.append(english.replace(".", "_").replace(",", ".").replace("_", ","))
    forms += [f"{form} dollars" for form in forms] + [f"$ {form}" for form in forms if whole >= 0]
    for form in forms:
        assert number_of(form) == value, form
        assert equal(form, forms[0])


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=64))
def test_percent_is_a_hundredth(value: Fraction) -> None:
    assert number_of(f"{show(value)}%") == value / 100
    assert equal(f"{show(value)}%", show(value / 100)) and equal(f"{show(value)}%", show(value))


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_equal_is_reflexive_and_symmetric(a: str, b: str) -> None:
    assert equal(a, a)
    assert equal(a, b) == equal(b, a)


WORDS = """one two twenty hundred thousand and a half third thirds quarters dozen six-packs root of minus or over times
squared pi x apples hours"""
PIECES = st.lists(
    st.sampled_from(
        [*WORDS.split(), "5", "2.5", "million", "3/4", "-", "$", "%", "°", r"0.\overline{3}", r"\cos", *"()=,"]
    ),
    max_size=7,
).map(" ".join)


@settings(deadline=None)
@given(PIECES, PIECES)
def test_words_and_numbers_are_compared_alike_in_both_orders(a: str, b: str) -> None:
    assert equal(a, a) and equal(a, b) == equal(b, a)
    answer = final_answer(a)
    assert answer is None or equal(answer, final_answer(answer) or "")


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,/%$ -+xX^{}()[]\\frac=<>|!e", max_size=24))
def test_any_mathematical_text_is_read(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or isinstance(answer, str)
    assert equal(text, text)
    read_quantity(text)


@given(st.text(max_size=300))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer.strip()


# --- the calculator ---------------------------------------------------------------------------------------------------

LEAVES = st.integers(0, 99).map(str) | st.decimals(0, 99, places=2).map(str)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({' '.join(t)})"),
    max_leaves=8,
)


@given(TREES)
def test_evaluate_against_python(text: str) -> None:
    """Python's own arithmetic over fractions, on expressions that this test has made."""
    tokens = text.replace("(", "( ").replace(")", " )").split()
    code = "".join(f"Fraction('{token}')" if token[0].isdigit() else token for token in tokens)
    try:
        expected = eval(code, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert evaluate(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2", 24), ("2+3*4", 14), ("-2^2", -4), ("2^3^2", 512), ("50%*200", 100), ("1,200*2", 2400), ("$5*3", 15),
        ("3 x 4", 12), ("(1+2", None), ("1/0", None), ("9**9**9**9", None), ("2^0.5", None), ("0^-1", None), ("", None),
        ("1 2", None), ("x", None), ("(" * 60 + "1" + ")" * 60, None), ("1" * 2000, None),
    ],
)  # fmt: skip
def test_evaluate(text: str, value: int | None) -> None:
    assert evaluate(text) == value


def test_annotations() -> None:
    text = "half is 48/2 = <<48/2=24>>24, a third <<1/3=0.33>>0.33, wrong <<2*3=7>>7, none <<x=1>>1"
    result = annotations(text)
    assert [(a.expression, a.stated, a.right) for a in result] == [
        ("48/2", "24", True), ("1/3", "0.33", True), ("2*3", "7", False), ("x", "1", None),
    ]  # fmt: skip
    assert text[slice(*result[0].span)] == "<<48/2=24>>"
    assert without_annotations(text) == "half is 48/2 = 24, a third 0.33, wrong 7, none 1"


def test_the_largest_decimals() -> None:
    assert read_decimal("9" * 4_000) == int("9" * 4_000)
    assert read_decimal("9" * 4_001) is None
    assert value_of(parse("2^{30000}")) is None
