# SPDX-License-Identifier: Apache-2.0
"""State spaces against scipy, HiPPO's own matrix and convolution by its definition."""

import numpy as np
import pytest
import torch

from foundling.blocks.conv import segments_of
from foundling.blocks.state_space import Diagonal, LowRank, Shift, StateSpace, legs
from foundling.runtime.rng import generator
from tests.rounding import bound

C, N, T = 3, 8, 29
KINDS = (LowRank, Diagonal, Shift)


def system(kind: type[StateSpace], seed: int = 0) -> StateSpace:
    """Nothing of it at its start: every parameter shows."""
    made = kind(C, N, 4)
    with torch.no_grad():
        for number, p in enumerate(made.parameters()):
            p.copy_(0.5 * torch.randn(p.shape, generator=generator(f"system {number}", seed)))
    return made


def inputs() -> torch.Tensor:
    return torch.randn(2, T, C, generator=generator("inputs", 0))


def close(a, b, tolerance: float = bound(depth=T // 4)) -> None:
    """By the bound of a kernel of T steps: a power of the state's matrix, summed over N, and a sum over T inputs."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert abs(a - b).max() <= tolerance * abs(b).max(), f"{abs(a - b).max() / abs(b).max():.2e}"


def continuous(of: Diagonal, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A, B, C as real matrices of one channel, and Δ: both halves of the conjugate pairs written out, then turned into
    real and imaginary parts."""
    pairs = {name: p[channel].detach().double().numpy() for name, p in of.named_parameters()}
    named = {"b": "input_gain", "c": "output_gain", "p": "p"}
    half = {k: pairs[name] @ np.array([1, 1j]) for k, name in named.items() if name in pairs}
    full = {k: np.concatenate((v, v.conj())) for k, v in half.items()}
    rate = -np.exp(pairs["log_rate"]) + 1j * pairs["frequency"]
    a = np.diag(np.concatenate((rate, rate.conj())))
    if "p" in full:
        a = a - np.outer(full["p"], full["p"].conj())
    one = np.eye(N // 2)
    turn = np.block([[one, 1j * one], [one, -1j * one]])
    a, b = np.linalg.solve(turn, a @ turn), np.linalg.solve(turn, full["b"][:, None])
    c = full["c"][None] @ turn
    assert max(abs(np.imag(m)).max() for m in (a, b, c)) < 1e-12
    return np.real(a), np.real(b), np.real(c), float(np.exp(pairs["log_dt"]))


@pytest.mark.parametrize("kind", [LowRank, Diagonal])
@torch.no_grad()
def test_convolution_and_recurrence_are_scipys(kind: type[Diagonal]) -> None:
    from scipy import signal  # takes seconds to import

    of, u = system(kind), inputs()
    assert isinstance(of, Diagonal)
    convolved, _ = of(u)
    for channel in range(C):
        a, b, c, dt = continuous(of, channel)
        a, b = signal.cont2discrete((a, b, c, np.zeros((1, 1))), dt, method="bilinear")[:2]  # pyright: ignore
        # scipy reads a state before the input reaches it, we after
        discrete = signal.dlti(a, b, c @ a, c @ b, dt=dt)
        _, impulse = signal.dimpulse(discrete, n=T)
        close(of.kernel(T)[channel], np.asarray(impulse)[0, :, 0])
        for row in range(2):
            y = np.asarray(signal.dlsim(discrete, u[row, :, channel].double().numpy())[1])
            close(convolved[row, :, channel] - of.skip[channel] * u[row, :, channel], y[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_forms_are_the_convolution_by_its_definition(kind: type[StateSpace]) -> None:
    of, u = system(kind), inputs()
    kernel = of.kernel(T).double()
    expected = torch.stack([sum(kernel[:, j] * u[:, t - j] for j in range(t + 1)) for t in range(T)], 1) + of.skip * u  # pyright: ignore
    close(of(u)[0], expected)
    documents = torch.zeros(2, T, dtype=torch.int64)
    segments = segments_of(documents, None)
    close(of(u, documents, segments)[0], expected)
    state, steps = torch.zeros(2, C, N), []
    for t in range(T):
        y, state = of(u[:, t : t + 1], documents[:, t : t + 1], segments[:, t : t + 1], state)
        steps.append(y)
    close(torch.cat(steps, 1), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_state_goes_on_where_a_row_was_cut(kind: type[StateSpace]) -> None:
    """At every place, within chunks and at their ends, with a document's border before it and padding behind."""
    of, u = system(kind), inputs()
    documents = (torch.arange(T) > 9).long().expand(2, -1)
    whole, _ = of(u, documents, segments_of(documents, None))
    for cut in range(1, T):
        first = torch.where(torch.arange(T) < cut, documents, -1)
        _, state = of(u, first, segments_of(first, None), torch.zeros(2, C, N))
        rest = documents[:, cut:]
        y, _ = of(u[:, cut:], rest, segments_of(rest, documents[:, cut - 1]), state)
        close(y, whole[:, cut:])


def test_diagonal_plus_low_rank_is_hippos_matrix() -> None:
    """It is triangular with −1, −2, … on its diagonal; in either basis the system answers alike."""
    n = np.arange(N)
    root = np.sqrt(2 * n + 1)
    hippo = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
    frequency, p = (t.numpy() for t in legs(N))
    p = np.concatenate((p, p))
    ours = np.diag(-0.5 + 1j * np.concatenate((frequency, -frequency))) - np.outer(p, p)
    assert np.allclose(np.sort(np.linalg.eigvals(ours).real), np.arange(-N, 0), atol=1e-6)
    for s in (0.3, 2j, 1 + 5j):
        theirs = root @ np.linalg.solve(s * np.eye(N) - hippo, root)
        assert np.isclose(2 * p @ np.linalg.solve(s * np.eye(N) - ours, p), theirs)


@torch.no_grad()
def test_the_shift_remembers_its_last_inputs_and_no_more() -> None:
    of = Shift(C, N, 4)
    of.initialise(generator("shift", 0))
    kernel = of.kernel(T)
    assert torch.equal(kernel[:, :N], of.output_gain) and not kernel[:, N:].any()
