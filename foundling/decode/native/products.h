// SPDX-License-Identifier: Apache-2.0
// Products of rows of activations and panels of weights.

#pragma once

#include <atomic>

#include "lanes.h"

#if defined(__AVX2__) && defined(__F16C__) && !defined(__AVX512VNNI__)
#include "avx2.h"
#define INTEGERS_BY_AVX2 1
#else
#define INTEGERS_BY_AVX2 0
#endif

namespace {

// Adds bias and residual and stores R rows x P panels; the last panel may be only partly used.
template <int R, int P>
inline void finish(const Op &op, int row, int panel, F (&sums)[R][P]) {
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) {
            const int begin = (panel + p) * L;
            const size_t at = (size_t)(row + r) * op.out + begin;
            const F v = op.bias ? sums[r][p] + load(op.bias + begin) : sums[r][p];
            if (begin + L <= op.out) {
                store(op.y + at, op.residual ? v + load(op.residual + at) : v);
            } else {
                for (int i = 0; begin + i < op.out; i++) op.y[at + i] = v[i] + (op.residual ? op.residual[at + i] : 0);
            }
        }
}

template <int R, int P>
inline void whole(const V (&parts)[R][P][L / W], F (&sums)[R][P]) {
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) memcpy(&sums[r][p], parts[r][p], 64);
}

// Each row sums over its inputs in order, whatever R and P are.
template <int R, int P>
inline void tile_float(const Op &op, int row, int panel, F (&sums)[R][P]) {
    const size_t in = op.in;
    const float *w = (const float *)op.weight + panel * in * L, *x = op.x + row * in;
    V acc[R][P][L / W];
    for (int i = 0; i < R * P * L / W; i++) (&acc[0][0][0])[i] = V{};
    for (size_t k = 0; k < in; k++)
        for (int p = 0; p < P; p++)
            for (int h = 0; h < L / W; h++) {
                const V v = part(w + (p * in + k) * L + h * W);
                for (int r = 0; r < R; r++) acc[r][p][h] += v * x[r * in + k];
            }
    whole<R, P>(acc, sums);
}

// Two inputs share 32 bits: the even one in the low half, the odd one in the high half.
template <int R, int P>
inline void tile_bf16(const Op &op, int row, int panel, F (&sums)[R][P]) {
    const size_t in = op.in, pairs = (in + 1) / 2;
    const uint32_t *w = (const uint32_t *)op.weight + panel * pairs * L;
    const float *x = op.x + row * in;
    V acc[R][P][L / W];
    for (int i = 0; i < R * P * L / W; i++) (&acc[0][0][0])[i] = V{};
    for (size_t k = 0; k < pairs; k++)
        for (int p = 0; p < P; p++)
            for (int h = 0; h < L / W; h++) {
                VU both;
                memcpy(&both, w + (p * pairs + k) * L + h * W, W * 4);
                const V even = (V)(both << 16), odd = (V)(both & 0xffff0000u);
                for (int r = 0; r < R; r++) acc[r][p][h] += even * x[r * in + 2 * k];
                if (2 * k + 1 == in) continue;
                for (int r = 0; r < R; r++) acc[r][p][h] += odd * x[r * in + 2 * k + 1];
            }
    whole<R, P>(acc, sums);
}

inline I dot4(I acc, B weights, const int8_t *x) {  // acc[lane] += Σ of 4 weights · 4 inputs
#if defined(__AVX512VNNI__)
    int32_t four;
    memcpy(&four, x, 4);
    return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, _mm512_set1_epi32(four));
#else
    for (int lane = 0; lane < L; lane++)
        for (int i = 0; i < 4; i++) acc[lane] += (int)weights[lane * 4 + i] * (int)x[i];
    return acc;
#endif
}

constexpr int INT8_SPANS = INT4_MIN + 1;  // one scale for several groups

// Integer products: weights are stored with an offset (128, or 8 where two share a byte), so sums start from the
// correction; with a minimum instead, Σ (minimum + scale · q) · x is minimum · Σ x + scale · Σ q · x. The integer sum of a
// span is exact; spans are added in order.
template <int FORM, int R, int P>
inline void tile_int(const Op &op, int row, int panel, F (&total)[R][P]) {
    constexpr bool FOUR_BITS = FORM == INT4 || FORM == INT4_MIN;
    constexpr int BYTES = FOUR_BITS ? GROUP * L / 2 : GROUP * L, LINE = FORM == INT4_MIN ? 2 * L : L;
    const size_t span = FORM == INT8_SPANS ? op.span : 1;  // lets the compiler see that it is 1
    const size_t groups = (op.in + GROUP - 1) / GROUP, spans = (groups + span - 1) / span;
    const uint8_t *w = (const uint8_t *)op.weight + panel * groups * BYTES;
    const uint16_t *s = op.scales + panel * spans * LINE;
    const Rounded *xs = op.xs + row * spans;
    const int8_t *x = op.xq + row * groups * GROUP;
    for (size_t at = 0, g = 0; at < spans; at++) {
        I acc[R][P];
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) acc[r][p] = FORM == INT4_MIN ? I{} : I{} + xs[r * spans + at].offset;
        for (const size_t end = g + span < groups ? g + span : groups; g < end; g++, x += GROUP)
            for (int k = 0; k < BYTES / 64; k++) {
                B b[P];
                for (int p = 0; p < P; p++) memcpy(&b[p], w + (p * groups + g) * BYTES + k * 64, 64);
                if constexpr (!FOUR_BITS) {
                    for (int r = 0; r < R; r++)
                        for (int p = 0; p < P; p++) acc[r][p] = dot4(acc[r][p], b[p], x + r * groups * GROUP + k * 4);
                } else {
                    for (int upper = 0; upper < 2; upper++)
                        for (int r = 0; r < R; r++)
                            for (int p = 0; p < P; p++)
                                acc[r][p] = dot4(acc[r][p], (upper ? (B)((U)b[p] >> 4) : b[p]) & 15,
                                                 x + r * groups * GROUP + k * 8 + upper * 4);
                }
            }
        for (int p = 0; p < P; p++) {
            const F scale = halves(s + (p * spans + at) * LINE);
            for (int r = 0; r < R; r++)
                total[r][p] += __builtin_convertvector(acc[r][p], F) * (scale * xs[r * spans + at].scale);
            if constexpr (FORM == INT4_MIN) {
                const F minimum = halves(s + (p * spans + at) * LINE + L);
                for (int r = 0; r < R; r++) total[r][p] += minimum * xs[r * spans + at].sum;
            }
        }
    }
}

template <int FORM, int R, int P>
__attribute__((noinline)) void tile(const Op &op, int row, int panel) {
    F sums[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) sums[r][p] = F{};
    if constexpr (FORM == F32) tile_float<R, P>(op, row, panel, sums);
    else if constexpr (FORM == BF16) tile_bf16<R, P>(op, row, panel, sums);
#if INTEGERS_BY_AVX2
    else tile_avx2<FORM, R, P>(op, row, panel, sums);
#else
    else tile_int<FORM, R, P>(op, row, panel, sums);
#endif
    finish<R, P>(op, row, panel, sums);
}

// A panel stays in the cache for all rows. The numbers of rows and panels per block were chosen by measurement.
template <int FORM, int P>
void rows_by(const Op &op, int count, int panel) {
    constexpr bool FLOATS = FORM == F32 || FORM == BF16, FOUR_BITS = FORM == INT4 || FORM == INT4_MIN;
    constexpr int MANY = W == 16 ? (FLOATS ? 8 : 6) : FLOATS || FOUR_BITS ? 6 : 4;
    int row = 0;
    for (; row + MANY <= count; row += MANY) tile<FORM, MANY, P>(op, row, panel);
    if (row + 4 <= count) tile<FORM, 4, P>(op, row, panel), row += 4;
    if (row + 2 <= count) tile<FORM, 2, P>(op, row, panel), row += 2;
    if (row < count) tile<FORM, 1, P>(op, row, panel);
}

// Products of all rows and the panels [begin, end).
template <int FORM>
void product(const Op &op, int count, int begin, int end) {
    constexpr int WIDE = W < 16 ? 1 : FORM == F32 ? 3 : 2, LONG = FORM == BF16 ? 2 : 4;
    int panel = begin;
    if (count == 1)
        for (; panel + LONG <= end; panel += LONG) tile<FORM, 1, LONG>(op, 0, panel);
    for (; panel + WIDE <= end; panel += WIDE) rows_by<FORM, WIDE>(op, count, panel);
    for (; panel < end; panel++) rows_by<FORM, 1>(op, count, panel);
}

void linear(const Op &op, const Rows &rows, std::atomic<int> &next) {
    const int panels = (op.out + L - 1) / L;
    const int step = (op.form == F32 && rows.count > 1 ? 3 : 4) * (1 + panels / 256);
    for (int begin; (begin = next.fetch_add(step, std::memory_order_relaxed)) < panels;) {
        int end = begin + step < panels ? begin + step : panels;
        switch (op.form) {
            case F32: product<F32>(op, rows.count, begin, end); break;
            case BF16: product<BF16>(op, rows.count, begin, end); break;
            case INT8:
                if (op.span > 1) product<INT8_SPANS>(op, rows.count, begin, end);
                else product<INT8>(op, rows.count, begin, end);
                break;
            case INT4: product<INT4>(op, rows.count, begin, end); break;
            default: product<INT4_MIN>(op, rows.count, begin, end);
        }
    }
}

}  // namespace
