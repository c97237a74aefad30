# SPDX-License-Identifier: Apache-2.0
"""Linear time-invariant state spaces (S4: Gu, Goel & Ré 2022; S4D: Gu, Gupta et al. 2022; H3: Fu et al. 2023): one
system per channel, x_t = Ā x_{t-1} + B̄ u_t, y_t = C x_t + skip · u_t.

A system defines one step (`advance`) and the output of a state (`readout`). Its matrices are derived from these. There
are three ways to compute the output: an FFT convolution if each row is one document, chunks for packed documents or an
initial state, and a single step for one token. All computation is in float32.

Letters beyond those of contracts: C channels, N state (real numbers), M = N/2 conjugate pairs, L chunk length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.conv import taps
from foundling.blocks.init import Role


def powers(matrix: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """matrix (C, N, N), start (C, N) -> (C, N, n): start, matrix · start, …, for the smallest power of two
    n ≥ count, and matrixⁿ, by doubling."""
    columns = start[..., None]
    while columns.shape[-1] < count:
        columns = torch.cat((columns, matrix @ columns), -1)
        matrix = matrix @ matrix
    return columns, matrix


class StateSpace(nn.Module):
    """`channels` systems of N = `d_state` each; `chunk`, a power of two, is L, used for packed rows."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__()
        self.channels, self.d_state, self.chunk = channels, d_state, chunk
        self.skip = nn.Parameter(torch.ones(channels))

    def roles(self) -> dict[str, Role]:
        """No parameter is a matrix between widths, whatever its shape; the output sums over the state."""
        names = [name for name, _ in self.named_parameters(recurse=False)]
        return {name: Role("conv", self.d_state) if name == "output_gain" else Role("vector", 1) for name in names}

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token: a chunk, and reading and writing the state. Building the matrices is not counted."""
        return 2 * self.channels * (min(self.chunk, seq_len) + 2 * self.d_state)

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        """Ā x + B̄ u: x (…, C, N), u (…, C) -> (…, C, N)"""
        raise NotImplementedError

    def readout(self) -> Tensor:
        """C (C, N)"""
        raise NotImplementedError

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ā (C, N, N), B̄ and C (C, N), by advancing each unit state and a unit input."""
        unit = torch.eye(self.d_state, device=self.skip.device)[:, None].expand(-1, self.channels, -1)
        zero, one = unit.new_zeros(self.channels, self.d_state), unit.new_ones(self.channels)
        a = self.advance(unit, torch.zeros_like(unit[..., 0])).permute(1, 2, 0)
        return a, self.advance(zero, one), self.readout()

    def kernel(self, steps: int) -> Tensor:
        """(C, T): C Āᵗ B̄, as products of √T small powers and √T large ones."""
        a, b, c = self.matrices()
        small, a = powers(a, b, math.isqrt(max(0, steps - 1)) + 1)
        large, _ = powers(a.mT, c, -(-steps // small.shape[-1]))
        return (large.mT @ small).flatten(1)[:, :steps]

    def forward(
        self, u: Tensor, documents: Tensor | None = None, segments: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """u (B, T, C); documents and segments (B, T), needed unless each row is one document; state (B, C, N) before
        the first token -> (B, T, C) float32, and the state after each row's last real token if one was passed in."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.float()
            if documents is None or segments is None:
                assert state is None, "a cache needs documents"
                y = self.convolve(u)
            elif state is not None and u.shape[1] == 1:
                x = self.advance(torch.where((segments == 0)[..., None], state, 0), u[:, 0])
                y = (self.readout() * x).sum(-1)[:, None]
                state = torch.where((documents >= 0)[..., None], x, state)
            else:
                y, chunk_states = self.in_chunks(u, segments, state)
                if state is not None:
                    state = self.state_after(u, (documents >= 0).sum(1), segments, chunk_states)
            return y + self.skip.float() * u, state

    def convolve(self, u: Tensor) -> Tensor:
        """Convolution with the kernel, by FFT of twice the length (Gu et al. 2022, section 2.4)."""
        steps = u.shape[1]
        spectrum = torch.fft.rfft(u, 2 * steps, dim=1) * torch.fft.rfft(self.kernel(steps).mT, 2 * steps, dim=0)
        return torch.fft.irfft(spectrum, 2 * steps, dim=1)[:, :steps]

    def in_chunks(self, u: Tensor, segments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (B, T, C) -> y (B, T, C), and the states (B, n + 1, C, N) before each of n chunks and after the last.

        A convolution within each chunk and a recurrence between chunks; neither crosses a document boundary."""
        steps, size = u.shape[1], self.chunk
        a, b, c = self.matrices()
        into, chunk_matrix = powers(a, b, size)  # (C, N, L): the state 0 … L − 1 steps after an input
        out, _ = powers(a.mT, (a.mT @ c[..., None])[..., 0], size)  # the output 1 … L steps after a state
        pad = -steps % size
        u, s = F.pad(u, (0, 0, 0, pad)), torch.cat((segments, segments[:, -1:].expand(-1, pad)), 1)
        chunks = torch.arange(u.shape[1], device=u.device) // size
        near = torch.einsum("cn,cnl->cl", c, into).flip(-1)
        y = taps(F.pad(u, (0, 0, size - 1, 0)), near, F.pad(s * len(chunks) + chunks, (size - 1, 0), value=-1))

        u, s = u.unflatten(1, (-1, size)), s.unflatten(1, (-1, size))
        incoming = torch.cat((torch.zeros_like(s[:, :1, -1]), s[:, :-1, -1]), 1)  # segment of the incoming state
        last_inputs = torch.where((s == s[:, :, -1:])[..., None], u, 0)
        added = torch.einsum("cnl,zklc->zkcn", into.flip(-1), last_inputs)
        carried_state = torch.zeros_like(added[:, 0]) if state is None else state
        chunk_states = [carried_state]
        for index in range(u.shape[1]):
            continues = (incoming[:, index] == s[:, index, -1])[:, None, None]
            carried_state = (
                torch.where(continues, (chunk_matrix @ carried_state[..., None])[..., 0], 0) + added[:, index]
            )
            chunk_states.append(carried_state)
        states = torch.stack(chunk_states, 1)
        far = torch.einsum("cnl,zkcn->zklc", out, states[:, :-1])
        far = torch.where((s == incoming[..., None])[..., None], far, 0).flatten(1, 2)
        return (y + far)[:, :steps], states

    def state_after(self, u: Tensor, real: Tensor, segments: Tensor, chunk_states: Tensor) -> Tensor:
        """The state (B, C, N) after `real` (B,) tokens of each row: advances the state before their chunk step by
        step."""
        rows, first = torch.arange(len(u), device=u.device), real // self.chunk * self.chunk
        state, s = chunk_states[rows, real // self.chunk], F.pad(segments, (1, 0))
        for step in range(min(self.chunk - 1, u.shape[1])):
            position = (first + step).clamp_max(u.shape[1] - 1)
            continues = (s[rows, position] == s[rows, position + 1])[:, None, None]
            advanced = self.advance(torch.where(continues, state, 0), u[rows, position])
            state = torch.where((first + step < real)[:, None, None], advanced, state)
        return state


class Diagonal(StateSpace):
    """A = Λ, complex, in conjugate pairs, one of each stored (S4D); bilinear discretisation."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__(channels, d_state, chunk)
        pairs = d_state // 2
        self.log_rate = nn.Parameter(torch.zeros(channels, pairs))
        self.frequency = nn.Parameter(torch.zeros(channels, pairs))
        self.input_gain, self.output_gain = (nn.Parameter(torch.zeros(channels, pairs, 2)) for _ in range(2))
        self.log_dt = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Rate ½, frequencies 0, π, 2π … (S4D-Lin), B of ones, C random, Δ from 0.001 to 0.1, uniform in the
        logarithm."""
        self.log_rate.fill_(math.log(0.5))
        self.frequency.copy_(math.pi * torch.arange(self.d_state // 2).expand_as(self.frequency))
        self.input_gain.copy_(torch.tensor([1.0, 0.0]).expand_as(self.input_gain))
        self.output_gain.copy_(torch.randn(self.output_gain.shape, generator=generator) * 0.5**0.5)
        self.log_dt.copy_(torch.rand(self.channels, generator=generator) * math.log(100) + math.log(0.001))
        self.skip.fill_(1.0)

    def rates(self) -> tuple[Tensor, Tensor]:
        """Λ (C, M) complex and Δ (C, 1)"""
        return torch.complex(-self.log_rate.float().exp(), self.frequency.float()), self.log_dt.float().exp()[:, None]

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        """(1 − Δ/2 Λ)⁻¹ ((1 + Δ/2 Λ) x + Δ B u)"""
        rate, dt = self.rates()
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        b = torch.view_as_complex(self.input_gain.float())
        advanced = ((1 + dt / 2 * rate) * z + dt * b * u[..., None]) / (1 - dt / 2 * rate)
        return torch.view_as_real(advanced).flatten(-2)

    def readout(self) -> Tensor:
        """2 Re(c z), which includes the conjugate of each pair."""
        real, imaginary = self.output_gain.float().unbind(-1)
        return torch.stack((2 * real, -2 * imaginary), -1).flatten(-2)


class LowRank(Diagonal):
    """A = Λ − p p*, diagonal plus low rank, the form of HiPPO's matrix in a suitable basis (Gu et al. 2022, theorem
    1)."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__(channels, d_state, chunk)
        self.p = nn.Parameter(torch.zeros(channels, d_state // 2, 2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """HiPPO-LegS, whose B is √2 P."""
        super().initialise(generator)
        frequency, p = legs(self.d_state)
        self.frequency.copy_(frequency.expand_as(self.frequency))
        self.p.copy_(torch.stack((p, torch.zeros_like(p)), -1).expand_as(self.p))
        self.input_gain.copy_(2**0.5 * self.p)

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        """(1 − Δ/2 A)⁻¹ ((1 + Δ/2 A) x + Δ B u) in O(N), the inverse by Woodbury's identity (appendix C.3)."""
        rate, dt = self.rates()
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        b, p = torch.view_as_complex(self.input_gain.float()), torch.view_as_complex(self.p.float())

        def project(v: Tensor) -> Tensor:  # p* v, including the conjugate of each pair
            return 2 * (p.conj() * v).real.sum(-1, keepdim=True)

        z = z + dt / 2 * (rate * z - p * project(z)) + dt * b * u[..., None]
        z, w = z / (1 - dt / 2 * rate), p / (1 - dt / 2 * rate)
        return torch.view_as_real(z - w * (project(z) / (2 / dt + project(w)))).flatten(-2)


def legs(n: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS (Gu et al. 2020) in the basis where A = −½ + i · frequency − p pᵀ: frequency and p (N/2,), of the half
    with positive frequencies, each basis vector rotated so that p is real and positive."""
    root = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    below = -2 * torch.outer(root, root).tril(-1)  # A's; A + P Pᵀ + ½ is skew
    skew = (below - below.mT) / 2
    frequency, basis = torch.linalg.eigh(-1j * skew)
    p = (basis.mH @ root.to(basis.dtype)).abs()
    return frequency[n // 2 :], p[n // 2 :]


class Shift(StateSpace):
    """Ā shifts the state by one: it stores the last N inputs (H3, section 3.1). B is learned too, as in the authors'
    models."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__(channels, d_state, chunk)
        self.input_gain, self.output_gain = (nn.Parameter(torch.zeros(channels, d_state)) for _ in range(2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """B writes the input into the first element; C is random."""
        self.input_gain.zero_()
        self.input_gain[:, 0] = 1.0
        self.output_gain.copy_(torch.randn(self.output_gain.shape, generator=generator) * self.d_state**-0.5)
        self.skip.fill_(1.0)

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        return F.pad(x[..., :-1], (1, 0)) + self.input_gain.float() * u[..., None]

    def readout(self) -> Tensor:
        return self.output_gain.float()
