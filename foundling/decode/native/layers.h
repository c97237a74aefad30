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

template <typename T>
void attend_head(const Op &op, const Rows &rows, int row, int kv, float *scores) {
    const int P = op.head_dim, group = op.heads / op.kv_heads, length = rows.positions[row] + 1;
    const int pages = (length + L - 1) / L, half = P / 2;
    const int32_t *table = rows.tables + (size_t)row * rows.page_stride;
    const size_t layer = (size_t)op.layer * rows.pages;
    for (int h = 0; h < group; h++) {
        const int head = kv * group + h;
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
        F most = splat(-INFINITY);
        for (int n = 0; n < pages; n++) {
            const T *keys = (const T *)rows.keys + ((layer + table[n]) * op.kv_heads + kv) * P * L;
            F s[4] = {F{}, F{}, F{}, F{}};
            int i = 0;
            for (; i + 4 <= P; i += 4)
                for (int j = 0; j < 4; j++) s[j] += load(keys + (size_t)(i + j) * L) * q[i + j];
            for (; i < P; i++) s[0] += load(keys + (size_t)i * L) * q[i];
            F all = (s[0] + s[1]) + (s[2] + s[3]);
            const int left = length - n * L;
            if (left < L)
                for (int j = left; j < L; j++) all[j] = -INFINITY;
            most = all > most ? all : most;
            store(scores + (size_t)n * L, all);
        }
        float top = most[0];
        for (int i = 1; i < L; i++) top = most[i] > top ? most[i] : top;
        F total = F{};
        for (int n = 0; n < pages; n++) {
            F s = load(scores + (size_t)n * L);
            F e = exponential(s - top);
            e = s > -INFINITY ? e : F{};
            total += e;
            store(scores + (size_t)n * L, e);
        }
        const float by = 1.0f / sum(total);
        float *y = op.y + (size_t)row * op.out + (size_t)head * P;
        for (int begin = 0; begin < P; begin += 4 * L) {  // 64 channels at a time stay in registers
            const int width = P - begin < 4 * L ? P - begin : 4 * L, blocks = width / L, rest = width % L;
            F acc[5] = {F{}, F{}, F{}, F{}, F{}};
            for (int n = 0; n < pages; n++) {
                const T *values = (const T *)rows.values + ((layer + table[n]) * op.kv_heads + kv) * P * L + begin;
                const int tokens = length - n * L < L ? length - n * L : L;
                for (int t = 0; t < tokens; t++) {
                    const float p = scores[(size_t)n * L + t];
                    const T *v = values + (size_t)t * P;
                    for (int b = 0; b < blocks; b++) acc[b] += load(v + b * L) * p;
                    if (rest) {
                        T some[L] = {0};
                        memcpy(some, v + blocks * L, rest * sizeof(T));
                        acc[4] += load(some) * p;
                    }
                }
            }
            for (int b = 0; b < blocks; b++) store(y + begin + b * L, acc[b] * by);
            for (int i = 0; i < rest; i++) y[begin + blocks * L + i] = acc[4][i] * by;
        }
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
