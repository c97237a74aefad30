// SPDX-License-Identifier: Apache-2.0
// Rows of activations by panels of weights.

#pragma once

#include <atomic>

#include "lanes.h"

namespace {

// R rows by P panels. Every sum runs over the inputs in order, whatever R and P are.
template <typename T, int R, int P>
void tile(const Op &op, int row, int panel) {
    const T *w = (const T *)op.weight + (size_t)panel * op.in * L;
    F acc[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) acc[r][p] = F{};
    const float *x = op.x + (size_t)row * op.in;
    for (int k = 0; k < op.in; k++) {
        F v[P];
        for (int p = 0; p < P; p++) v[p] = load(w + ((size_t)p * op.in + k) * L);
        for (int r = 0; r < R; r++) {
            F at = splat(x[(size_t)r * op.in + k]);
            for (int p = 0; p < P; p++) acc[r][p] += v[p] * at;
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) {
            int begin = (panel + p) * L;
            F v = acc[r][p];
            if (op.bias) v += load(op.bias + begin);
            float *y = op.y + (size_t)(row + r) * op.out + begin;
            const float *residual = op.residual ? op.residual + (size_t)(row + r) * op.out + begin : nullptr;
            if (begin + L <= op.out) {
                store(y, residual ? v + load(residual) : v);
            } else {
                for (int i = 0; begin + i < op.out; i++) y[i] = v[i] + (residual ? residual[i] : 0.0f);
            }
        }
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

// Integers by integers: weights are stored with an offset (128, or 8 where two share a byte), taken back by the sum of
// the inputs; a group's integer sum is exact, groups are added in order.
template <int FORM, int R, int P>
void tile_int(const Op &op, int row, int panel) {
    constexpr int BYTES = FORM == INT8 ? GROUP * L : GROUP * L / 2;
    const int groups = (op.in + GROUP - 1) / GROUP;
    const uint8_t *w = (const uint8_t *)op.weight + (size_t)panel * groups * BYTES;
    const uint16_t *s = op.scales + (size_t)panel * groups * L;
    F total[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) total[r][p] = F{};
    for (int g = 0; g < groups; g++) {
        I acc[R][P];
        for (int r = 0; r < R; r++) {
            int32_t offset = (int32_t)op.xs[((size_t)(row + r) * groups + g) * 2 + 1] * (FORM == INT8 ? -128 : -8);
            for (int p = 0; p < P; p++) acc[r][p] = I{} + offset;
        }
        const int8_t *x = op.xq + ((size_t)row * groups + g) * GROUP;
        for (int k = 0; k < BYTES / 64; k++) {
            for (int p = 0; p < P; p++) {
                B b;
                memcpy(&b, w + ((size_t)p * groups + g) * BYTES + k * 64, 64);
                if (FORM == INT8) {
                    for (int r = 0; r < R; r++)
                        acc[r][p] = dot4(acc[r][p], b, x + (size_t)r * groups * GROUP + k * 4);
                } else {
                    B low = b & 15, high = (B)((U)b >> 4) & 15;
                    for (int r = 0; r < R; r++) {
                        acc[r][p] = dot4(acc[r][p], low, x + (size_t)r * groups * GROUP + k * 8);
                        acc[r][p] = dot4(acc[r][p], high, x + (size_t)r * groups * GROUP + k * 8 + 4);
                    }
                }
            }
        }
        for (int p = 0; p < P; p++) {
            F scale = halves(s + ((size_t)p * groups + g) * L);
            for (int r = 0; r < R; r++)
                total[r][p] += __builtin_convertvector(acc[r][p], F) *
                               (scale * op.xs[((size_t)(row + r) * groups + g) * 2]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) {
            int begin = (panel + p) * L;
            F v = total[r][p];
            if (op.bias) v += load(op.bias + begin);
            float *y = op.y + (size_t)(row + r) * op.out + begin;
            const float *residual = op.residual ? op.residual + (size_t)(row + r) * op.out + begin : nullptr;
            for (int i = 0; i < L && begin + i < op.out; i++) y[i] = v[i] + (residual ? residual[i] : 0.0f);
        }
}

template <int FORM, int R, int P>
inline void tiles(const Op &op, int row, int panel) {
    if constexpr (FORM == F32) tile<float, R, P>(op, row, panel);
    else if constexpr (FORM == BF16) tile<uint16_t, R, P>(op, row, panel);
    else tile_int<FORM, R, P>(op, row, panel);
}

// All rows by the panels [begin, end): a panel stays in the cache while rows pass.
template <int FORM>
void product(const Op &op, int count, int begin, int end) {
    constexpr int MANY = FORM == INT8 || FORM == INT4 ? 4 : 8;
    int panel = begin;
    if (count == 1)
        for (; panel + 4 <= end; panel += 4) tiles<FORM, 1, 4>(op, 0, panel);
    for (; panel < end; panel += 2) {
        bool two = panel + 2 <= end;
        int row = 0;
        for (; row + MANY <= count; row += MANY)
            two ? tiles<FORM, MANY, 2>(op, row, panel) : tiles<FORM, MANY, 1>(op, row, panel);
        for (; row + 2 <= count; row += 2) two ? tiles<FORM, 2, 2>(op, row, panel) : tiles<FORM, 2, 1>(op, row, panel);
        for (; row < count; row++) two ? tiles<FORM, 1, 2>(op, row, panel) : tiles<FORM, 1, 1>(op, row, panel);
    }
}

void linear(const Op &op, const Rows &rows, std::atomic<int> &next) {
    const int panels = (op.out + L - 1) / L;
    const int step = 4 * (1 + panels / 256);
    for (int begin; (begin = next.fetch_add(step, std::memory_order_relaxed)) < panels;) {
        int end = begin + step < panels ? begin + step : panels;
        switch (op.form) {
            case F32: product<F32>(op, rows.count, begin, end); break;
            case BF16: product<BF16>(op, rows.count, begin, end); break;
            case INT8: product<INT8>(op, rows.count, begin, end); break;
            default: product<INT4>(op, rows.count, begin, end);
        }
    }
}

}  // namespace
