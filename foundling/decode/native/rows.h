// SPDX-License-Identifier: Apache-2.0
// Operations on single rows: norms, activations, quantisation.

#pragma once

#include <atomic>

#include "lanes.h"

namespace {

void norm(const Op &op, const Rows &rows, std::atomic<int> &next) {
    for (int row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows.count;) {
        const float *x = op.x + (size_t)row * op.in;
        const float *weight = (const float *)op.weight;
        float *y = op.y + (size_t)row * op.in;
        const int whole = op.in / L * L;
        float mean = 0;
        if (op.form) {
            F s = F{};
            for (int i = 0; i < whole; i += L) s += load(x + i);
            mean = sum(s);
            for (int i = whole; i < op.in; i++) mean += x[i];
            mean /= op.in;
        }
        F q = F{};
        for (int i = 0; i < whole; i += L) {
            F d = load(x + i) - mean;
            q += d * d;
        }
        float square = sum(q);
        for (int i = whole; i < op.in; i++) square += (x[i] - mean) * (x[i] - mean);
        const float by = 1.0f / std::sqrt(square / op.in + op.number);
        for (int i = 0; i < whole; i += L) {
            F v = (load(x + i) - mean) * by * load(weight + i);
            store(y + i, op.bias ? v + load(op.bias + i) : v);
        }
        for (int i = whole; i < op.in; i++) y[i] = (x[i] - mean) * by * weight[i] + (op.bias ? op.bias[i] : 0.0f);
    }
}

template <typename T>
inline T gelu_tanh(T x) {  // x · σ(2u) is x/2 · (1 + tanh u)
    T u = (x + x * x * x * 0.044715f) * 1.5957691216057308f;
    return x / (exponential(-u) + 1.0f);
}
template <typename T>
inline T silu(T x) { return x / (exponential(-x) + 1.0f); }
// erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7 plus float32 rounding
template <typename T>
inline T erf(T x) {
    const T a = x < 0.0f ? -x : x, t = 1.0f / (a * 0.3275911f + 1.0f);
    T p = T{} + 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const T y = 1.0f - p * t * exponential(-a * a);
    return x < 0.0f ? -y : y;
}
template <typename T>
inline T gelu(T x) { return x * 0.5f * (erf(x * 0.70710678118654752f) + 1.0f); }
template <typename T>
inline T activated(int form, T x) {
    switch (form) {
        case SILU_GATED: return silu(x);
        case GELU_TANH: case GELU_TANH_GATED: return gelu_tanh(x);
        case RELU: return x > 0.0f ? x : T{};
        default: return gelu(x);
    }
}

void activate(const Op &op, const Rows &rows, std::atomic<int> &next) {
    const bool gated = op.form == SILU_GATED || op.form == GELU_TANH_GATED || op.form == GELU_GATED;
    constexpr int STEP = 512;
    const int pieces = (op.out + STEP - 1) / STEP;
    for (int job; (job = next.fetch_add(1, std::memory_order_relaxed)) < rows.count * pieces;) {
        const int row = job / pieces, begin = job % pieces * STEP;
        const int end = begin + STEP < op.out ? begin + STEP : op.out;
        const float *x = op.x + (size_t)row * op.in;
        float *y = op.y + (size_t)row * op.out;
        int i = begin;
        for (; i + W <= end; i += W) {
            const V v = activated(op.form, part(x + i));
            store_part(y + i, gated ? v * part(x + op.out + i) : v);
        }
        if (i < end) {
            V a = V{};
            memcpy(&a, x + i, (end - i) * 4);
            const V v = activated(op.form, a);
            for (int j = 0; i + j < end; j++) y[i + j] = gated ? v[j] * x[op.out + i + j] : v[j];
        }
    }
}

void quantize(const Op &op, const Rows &rows, std::atomic<int> &next) {
    const int groups = (op.in + GROUP - 1) / GROUP, spans = (groups + op.span - 1) / op.span;
    for (int row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows.count;) {
        const float *x = op.x + (size_t)row * op.in;
        int8_t *to = op.xq + (size_t)row * groups * GROUP;
        for (int at = 0; at < spans; at++) {
            const int begin = at * op.span * GROUP, wanted = begin + op.span * GROUP;
            const int end = wanted < groups * GROUP ? wanted : groups * GROUP, whole = end < op.in ? end : op.in / L * L;
            F size = F{}, last = F{};
            for (int i = begin; i < whole; i += L) {
                const F a = load(x + i);
                size = max(size, a < 0.0f ? -a : a);
            }
            if (whole < op.in && end > op.in) memcpy(&last, x + whole, (op.in - whole) * 4);
            const float most = largest(max(size, last < 0.0f ? -last : last)), by = most > 0 ? 127.0f / most : 0.0f;
            I total = I{};
            for (int i = begin; i < end; i += L) {
                const I q = nearest((i < whole ? load(x + i) : i == whole ? last : F{}) * by);
                const Bytes bytes = __builtin_convertvector(q, Bytes);
                memcpy(to + i, &bytes, L);
                total += q;
            }
            Rounded &rounded = op.xs[(size_t)row * spans + at];
            rounded.scale = most / 127.0f;
            if (op.form == INT4_MIN) rounded.sum = rounded.scale * sum(total);
            else rounded.offset = sum(total) * (op.form == INT8 ? -128 : -8);
        }
    }
}

}  // namespace
