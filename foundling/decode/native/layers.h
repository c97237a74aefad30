// SPDX-License-Identifier: Apache-2.0
// What is not a product: norms, activations, rounding to integers, attention over pages.

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

inline F gelu_tanh(F x) {  // x · σ(2u) is x/2 · (1 + tanh u)
    F u = (x + x * x * x * 0.044715f) * 1.5957691216057308f;
    return x / (exponential(-u) + 1.0f);
}
inline F silu(F x) { return x / (exponential(-x) + 1.0f); }
inline F gelu(F x) {
    F y;
    for (int i = 0; i < L; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
    return y;
}
inline F activated(int form, F x) {
    switch (form) {
        case SILU_GATED: return silu(x);
        case GELU_TANH: case GELU_TANH_GATED: return gelu_tanh(x);
        case RELU: return x > 0.0f ? x : F{};
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
        for (int i = begin; i < end; i += L) {
            F a = F{}, b = F{};
            const int n = end - i < L ? end - i : L;
            memcpy(&a, x + i, n * 4);
            F v = activated(op.form, a);
            if (gated) {
                memcpy(&b, x + op.out + i, n * 4);
                v *= b;
            }
            memcpy(y + i, &v, n * 4);
        }
    }
}

void quantize(const Op &op, const Rows &rows, std::atomic<int> &next) {
    const int groups = (op.in + GROUP - 1) / GROUP;
    for (int row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows.count;) {
        const float *x = op.x + (size_t)row * op.in;
        for (int g = 0; g < groups; g++) {
            float v[GROUP] = {0}, most = 0;
            const int n = op.in - g * GROUP < GROUP ? op.in - g * GROUP : GROUP;
            memcpy(v, x + g * GROUP, n * 4);
            for (int i = 0; i < GROUP; i++) most = std::fabs(v[i]) > most ? std::fabs(v[i]) : most;
            const float scale = most / 127.0f, by = most > 0 ? 127.0f / most : 0.0f;
            int32_t total = 0;
            int8_t *q = op.xq + ((size_t)row * groups + g) * GROUP;
            for (int i = 0; i < GROUP; i++) {
                int32_t whole = (int32_t)(v[i] * by + (v[i] < 0 ? -0.5f : 0.5f));
                q[i] = (int8_t)whole;
                total += whole;
            }
            op.xs[(size_t)row * groups + g] = {scale, total * (op.form == INT8 ? -128 : -8)};
        }
    }
}

// x holds q, k and v of every row. Keys lie transposed in their page, so that 16 scores come of one pass over q.
template <typename T>
void remember(const Op &op, const Rows &rows, int row, int head) {
    const int P = op.head_dim, position = rows.positions[row];
    const size_t page = rows.tables[(size_t)row * rows.page_stride + position / L];
    const size_t block = (((size_t)op.layer * rows.pages + page) * op.kv_heads + head) * P * L;
    const float *k = op.x + (size_t)row * op.in + (size_t)(op.heads + head) * P;
    const float *v = k + (size_t)op.kv_heads * P;
    T *keys = (T *)rows.keys + block + position % L, *values = (T *)rows.values + block + (size_t)(position % L) * P;
    const int half = P / 2;
    for (int i = 0; i < P; i++) {
        float key = k[i];
        if (rows.cosine) {
            const float turned = i < half ? -k[i + half] : k[i - half];
            key = key * rows.cosine[(size_t)row * P + i] + turned * rows.sine[(size_t)row * P + i];
        }
        put(keys + (size_t)i * L, key);
        put(values + i, v[i]);
    }
}

// Σ weight · value of N times 16 channels. The last load may run past a head's channels: pages have room behind them.
template <typename T, int N>
inline void mix(const T *values, size_t stride, const int32_t *table, int length, int P, const float *weights, float by,
                int width, float *y) {
    F acc[N];
    for (int b = 0; b < N; b++) acc[b] = F{};
    for (int n = 0; n * L < length; n++) {
        const T *v = values + table[n] * stride, *soon = v;
        const int tokens = length - n * L < L ? length - n * L : L;
        if ((n + 1) * L < length) soon = values + table[n + 1] * stride;
        for (int t = 0; t < tokens; t++, v += P, soon += P) {
            for (size_t at = 0; at < N * L * sizeof(T); at += 64) __builtin_prefetch((const char *)soon + at);
            for (int b = 0; b < N; b++) acc[b] += load(v + b * L) * weights[n * L + t];
        }
    }
    for (int b = 0; b < N; b++) {
        const F v = acc[b] * by;
        memcpy(y + b * L, &v, width - b * L < L ? (width - b * L) * 4 : 64);
    }
}

// Softmax of q · keys, unnormalised; returns what to multiply by.
template <typename T>
inline float weigh(const T *keys, size_t stride, const int32_t *table, int length, int P, const float *q,
                   float *weights) {
    F most = splat(-INFINITY);
    for (int n = 0; n * L < length; n++) {
        const T *k = keys + table[n] * stride, *soon = (n + 1) * L < length ? keys + table[n + 1] * stride : k;
        F s[4] = {F{}, F{}, F{}, F{}};
        int i = 0;
        for (; i + 4 <= P; i += 4) {
            for (size_t at = 0; at < 4 * L * sizeof(T); at += 64) __builtin_prefetch((const char *)(soon + i * L) + at);
            for (int j = 0; j < 4; j++) s[j] += load(k + (size_t)(i + j) * L) * q[i + j];
        }
        for (; i < P; i++) s[0] += load(k + (size_t)i * L) * q[i];
        F all = (s[0] + s[1]) + (s[2] + s[3]);
        for (int j = length - n * L; j < L; j++) all[j] = -INFINITY;
        most = all > most ? all : most;
        store(weights + n * L, all);
    }
    float top = most[0];
    for (int i = 1; i < L; i++) top = most[i] > top ? most[i] : top;
    F total = F{};
    for (int n = 0; n * L < length; n++) {
        const F s = load(weights + n * L), e = exponential(s - top), some = s > -INFINITY ? e : F{};
        total += some;
        store(weights + n * L, some);
    }
    return 1.0f / sum(total);
}

template <typename T>
void attend_head(const Op &op, const Rows &rows, int row, int kv, float *weights) {
    const int P = op.head_dim, group = op.heads / op.kv_heads, length = rows.positions[row] + 1, half = P / 2;
    const int32_t *table = rows.tables + (size_t)row * rows.page_stride;
    const size_t block = (size_t)P * L, stride = op.kv_heads * block;
    const size_t first = (size_t)op.layer * rows.pages * stride + kv * block;
    const T *keys = (const T *)rows.keys + first, *values = (const T *)rows.values + first;
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        const float *given = op.x + (size_t)row * op.in + (size_t)head * P;
        float q[512];
        for (int i = 0; i < P; i++) {
            q[i] = given[i];
            if (rows.cosine) {
                const float turned = i < half ? -given[i + half] : given[i - half];
                q[i] = given[i] * rows.cosine[(size_t)row * P + i] + turned * rows.sine[(size_t)row * P + i];
            }
            q[i] *= op.number;
        }
        const float by = weigh(keys, stride, table, length, P, q, weights);
        float *y = op.y + (size_t)row * op.out + (size_t)head * P;
        int at = 0;
        for (; at + 4 * L <= P; at += 4 * L)
            mix<T, 4>(values + at, stride, table, length, P, weights, by, 4 * L, y + at);
        for (; at < P; at += L)
            mix<T, 1>(values + at, stride, table, length, P, weights, by, P - at < L ? P - at : L, y + at);
    }
}

void attend(const Op &op, const Rows &rows, std::atomic<int> &next, int me, bool write) {
    for (int job; (job = next.fetch_add(1, std::memory_order_relaxed)) < rows.count * op.kv_heads;) {
        const int row = job / op.kv_heads, kv = job % op.kv_heads;
        float *scores = rows.scores + (size_t)me * rows.longest;
        if (write) rows.kv_bf16 ? remember<uint16_t>(op, rows, row, kv) : remember<float>(op, rows, row, kv);
        else rows.kv_bf16 ? attend_head<uint16_t>(op, rows, row, kv, scores)
                          : attend_head<float>(op, rows, row, kv, scores);
    }
}

}  // namespace
