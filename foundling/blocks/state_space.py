# SPDX-License-Identifier: Apache-2.0
"""Linear time-invariant state spaces (S4: Gu, Goel & Ré 2022; S4D: Gu, Gupta et al. 2022; H3: Fu et al. 2023): one
system per channel, x_t = Ā x_{t-1} + B̄ u_t, y_t = C x_t + skip · u_t.

A system defines one step (`advance`) and the output of a state (`readout`). Its matrices follow from these, and from
them three forms of the same sum: a convolution by FFT where a row is one document, chunks where documents are packed or
a state is passed in, and the step itself for one token. All of it is in float32.

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
    """matrix (C, N, N), start (C, N) -> (C, N, n): start, matrix · start, … for the power of two n ≥ count, and
    matrixⁿ, by doubling."""
    columns = start[..., None]
    while columns.shape[-1] < count:
        columns = torch.cat((columns, matrix @ columns), -1)
        matrix = matrix @ matrix
    return columns, matrix


class StateSpace(nn.Module):
    """`channels` systems of N = `d_state` each; `chunk`, a power of two, is the L of packed rows."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__()
        self.channels, self.d_state, self.chunk = channels, d_state, chunk
        self.skip = nn.Parameter(torch.ones(channels))

    def roles(self) -> dict[str, Role]:
        """None of them is a matrix between widths, whatever its shape; the output sums over the state."""
        names = [name for name, _ in self.named_parameters(recurse=False)]
        return {name: Role("conv", self.d_state) if name == "output_gain" else Role("vector", 1) for name in names}

    def sequence_flops(self, seq_len: int) -> int:
        """Forward, per token: a chunk, and the state read and written; the matrices are built once, for no token."""
        return 2 * self.channels * (min(self.chunk, seq_len) + 2 * self.d_state)

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        """Ā x + B̄ u: x (…, C, N), u (…, C) -> (…, C, N)"""
        raise NotImplementedError

    def readout(self) -> Tensor:
        """C (C, N)"""
        raise NotImplementedError

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ā (C, N, N), B̄ and C (C, N), by advancing every unit state and a unit input."""
        unit = torch.eye(self.d_state, device=self.skip.device)[:, None].expand(-1, self.channels, -1)
        none, one = unit.new_zeros(self.channels, self.d_state), unit.new_ones(self.channels)
        a = self.advance(unit, torch.zeros_like(unit[..., 0])).permute(1, 2, 0)
        return a, self.advance(none, one), self.readout()

    def kernel(self, steps: int) -> Tensor:
        """(C, T): C Āᵗ B̄, as products of √T small powers and √T large ones."""
        a, b, c = self.matrices()
        small, a = powers(a, b, math.isqrt(max(0, steps - 1)) + 1)
        large, _ = powers(a.mT, c, -(-steps // small.shape[-1]))
        return (large.mT @ small).flatten(1)[:, :steps]

    def forward(
        self, u: Tensor, documents: Tensor | None = None, segments: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """u (B, T, C); documents and segments (B, T) where rows are not one document each; state (B, C, N) before the
        first token -> (B, T, C) float32, and, where a state was passed in, the state after each row's last real
        token."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.float()
            if documents is None or segments is None:
                assert state is None, "a cache tells the documents"
                y = self.convolve(u)
            elif state is not None and u.shape[1] == 1:
                x = self.advance(torch.where((segments == 0)[..., None], state, 0), u[:, 0])
                y = (self.readout() * x).sum(-1)[:, None]
                state = torch.where((documents >= 0)[..., None], x, state)
            else:
                y, before = self.in_chunks(u, segments, state)
                if state is not None:
                    state = self.behind(u, (documents >= 0).sum(1), segments, before)
            return y + self.skip.float() * u, state

    def convolve(self, u: Tensor) -> Tensor:
        """With the kernel, by FFT of twice the length (Gu et al. 2022, section 2.4)."""
        steps = u.shape[1]
        spectrum = torch.fft.rfft(u, 2 * steps, dim=1) * torch.fft.rfft(self.kernel(steps).mT, 2 * steps, dim=0)
        return torch.fft.irfft(spectrum, 2 * steps, dim=1)[:, :steps]

    def in_chunks(self, u: Tensor, segments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (B, T, C) -> y (B, T, C), and the states (B, n + 1, C, N) before each of n chunks and after the last: taps
        within a chunk, a recurrence between them, nothing across a document's border."""
        steps, size = u.shape[1], self.chunk
        a, b, c = self.matrices()
        into, whole = powers(a, b, size)  # (C, N, L): what an input leaves, 0 … L − 1 steps later
        out, _ = powers(a.mT, (a.mT @ c[..., None])[..., 0], size)  # what is read of a state, 1 … L steps later
        pad = -steps % size
        u, s = F.pad(u, (0, 0, 0, pad)), torch.cat((segments, segments[:, -1:].expand(-1, pad)), 1)
        chunks = torch.arange(u.shape[1], device=u.device) // size
        near = torch.einsum("cn,cnl->cl", c, into).flip(-1)
        y = taps(F.pad(u, (0, 0, size - 1, 0)), near, F.pad(s * len(chunks) + chunks, (size - 1, 0), value=-1))

        u, s = u.unflatten(1, (-1, size)), s.unflatten(1, (-1, size))
        arriving = torch.cat((torch.zeros_like(s[:, :1, -1]), s[:, :-1, -1]), 1)  # segment of the state that comes
        left = torch.where((s == s[:, :, -1:])[..., None], u, 0)
        added = torch.einsum("cnl,zklc->zkcn", into.flip(-1), left)
        carried = torch.zeros_like(added[:, 0]) if state is None else state
        before = [carried]
        for index in range(u.shape[1]):
            goes_on = (arriving[:, index] == s[:, index, -1])[:, None, None]
            carried = torch.where(goes_on, (whole @ carried[..., None])[..., 0], 0) + added[:, index]
            before.append(carried)
        states = torch.stack(before, 1)
        far = torch.einsum("cnl,zkcn->zklc", out, states[:, :-1])
        far = torch.where((s == arriving[..., None])[..., None], far, 0).flatten(1, 2)
        return (y + far)[:, :steps], states

    def behind(self, u: Tensor, real: Tensor, segments: Tensor, before: Tensor) -> Tensor:
        """The state (B, C, N) after `real` (B,) tokens of each row: the one before their chunk, advanced step by
        step."""
        rows, first = torch.arange(len(u), device=u.device), real // self.chunk * self.chunk
        state, s = before[rows, real // self.chunk], F.pad(segments, (1, 0))
        for step in range(min(self.chunk - 1, u.shape[1])):
            at = (first + step).clamp_max(u.shape[1] - 1)
            goes_on = (s[rows, at] == s[rows, at + 1])[:, None, None]
            after = self.advance(torch.where(goes_on, state, 0), u[rows, at])
            state = torch.where((first + step < real)[:, None, None], after, state)
        return state


class Diagonal(StateSpace):
    """A = Λ, complex, in conjugate pairs of which one is stored (S4D); discretised by the bilinear rule."""

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
        after = ((1 + dt / 2 * rate) * z + dt * b * u[..., None]) / (1 - dt / 2 * rate)
        return torch.view_as_real(after).flatten(-2)

    def readout(self) -> Tensor:
        """2 Re(c z), which counts the other half of each pair"""
        real, imaginary = self.output_gain.float().unbind(-1)
        return torch.stack((2 * real, -2 * imaginary), -1).flatten(-2)


class LowRank(Diagonal):
    """A = Λ − p p*, diagonal plus low rank, which HiPPO's matrix is in the right basis (Gu et al. 2022, theorem 1)."""

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

        def along(v: Tensor) -> Tensor:  # p* v, the other half of each pair counted
            return 2 * (p.conj() * v).real.sum(-1, keepdim=True)

        z = z + dt / 2 * (rate * z - p * along(z)) + dt * b * u[..., None]
        z, w = z / (1 - dt / 2 * rate), p / (1 - dt / 2 * rate)
        return torch.view_as_real(z - w * (along(z) / (2 / dt + along(w)))).flatten(-2)


def legs(n: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS (Gu et al. 2020) in the basis where A = −½ + i · frequency − p pᵀ: frequency and p (N/2,), of the half
    with positive frequencies, each basis vector turned so that p is real and positive."""
    root = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    below = -2 * torch.outer(root, root).tril(-1)  # A's; A + P Pᵀ + ½ is skew
    skew = (below - below.mT) / 2
    frequency, basis = torch.linalg.eigh(-1j * skew)
    p = (basis.mH @ root.to(basis.dtype)).abs()
    return frequency[n // 2 :], p[n // 2 :]


class Shift(StateSpace):
    """Ā shifts the state by one: a memory of the last N inputs (H3, section 3.1). B is learned too, as in the authors'
    models."""

    def __init__(self, channels: int, d_state: int, chunk: int) -> None:
        super().__init__(channels, d_state, chunk)
        self.input_gain, self.output_gain = (nn.Parameter(torch.zeros(channels, d_state)) for _ in range(2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """B writes the input into the first place; C is random."""
        self.input_gain.zero_()
        self.input_gain[:, 0] = 1.0
        self.output_gain.copy_(torch.randn(self.output_gain.shape, generator=generator) * self.d_state**-0.5)
        self.skip.fill_(1.0)

    def advance(self, x: Tensor, u: Tensor) -> Tensor:
        return F.pad(x[..., :-1], (1, 0)) + self.input_gain.float() * u[..., None]

    def readout(self) -> Tensor:
        return self.output_gain.float()
