// SPDX-License-Identifier: Apache-2.0
// Attention over pages. Queries with the same keys (consecutive tokens of a sequence, heads of one key head) process
// each page together while it is in the cache; the result of a query does not depend on the others.

#pragma once

#include <atomic>

#include "lanes.h"

namespace {

constexpr int WIDEST = 512, NEIGHBOURS = 4;

// Applies the rotary embedding (rotate-half) to one head and scales it.
inline void turn(const Rows &rows, int row, const float *x, int P, float scale, float *y) {
    if (!rows.cosine) {
        for (int i = 0; i < P; i++) y[i] = x[i] * scale;
        return;
    }
    const float *c = rows.cosine + (size_t)row * P, *s = rows.sine + (size_t)row * P;
    const int half = P / 2;
    for (int i = 0; i < half; i++) y[i] = (x[i] * c[i] - x[i + half] * s[i]) * scale;
    for (int i = half; i < P; i++) y[i] = (x[i] * c[i] + x[i - half] * s[i]) * scale;
}

// Stores k and v in their pages; x holds q, k and v of every row. Pages store keys transposed, so one pass over q gives
// 16 scores.
template <typename T>
void remember(const Op &op, const Rows &rows, const Group &g, int head) {
    const int P = op.head_dim;
    float key[WIDEST];
    for (int row = g.row; row < g.row + g.count; row++) {
        const int position = rows.positions[row];
        const size_t page = rows.tables[(size_t)g.table * rows.page_stride + position / L];
        const size_t block = (((size_t)op.layer * rows.pages + page) * op.kv_heads + head) * P * L;
        const float *k = op.x + (size_t)row * op.in + (size_t)(op.heads + head) * P;
        const float *v = k + (size_t)op.kv_heads * P;
        T *keys = (T *)rows.keys + block + position % L, *values = (T *)rows.values + block + (size_t)(position % L) * P;
        turn(rows, row, k, P, 1.0f, key);
        for (int i = 0; i < P; i++) put(keys + (size_t)i * L, key[i]);
        for (int i = 0; i < P; i++) put(values + i, v[i]);
    }
}

template <int Q>
struct Queries {
    float q[Q][WIDEST];
    int length[Q];
    float *weights[Q];
    float by[Q];
    float *y[Q];
};

// Unnormalised softmax of q · keys, and the factor that normalises it.
template <typename T, int Q>
inline void weigh(const T *keys, size_t stride, const int32_t *table, int P, Queries<Q> &of) {
    const int longest = of.length[Q - 1];
    V most[Q];
    for (int j = 0; j < Q; j++) most[j] = V{} - INFINITY;
    for (int n = 0; n * L < longest; n++) {
        const T *k = keys + table[n] * stride, *soon = (n + 1) * L < longest ? keys + table[n + 1] * stride : k;
        for (int h = 0; h < L; h += W) {
            V even[Q], odd[Q];
            for (int j = 0; j < Q; j++) even[j] = odd[j] = V{};
            int i = 0;
            for (; i + 2 <= P; i += 2) {
                if (h == 0)
                    for (size_t at = 0; at < 2 * L * sizeof(T); at += 64)
                        __builtin_prefetch((const char *)(soon + i * L) + at);
                const V a = part(k + (size_t)i * L + h), b = part(k + (size_t)(i + 1) * L + h);
                for (int j = 0; j < Q; j++) even[j] += a * of.q[j][i];
                for (int j = 0; j < Q; j++) odd[j] += b * of.q[j][i + 1];
            }
            if (i < P)
                for (int j = 0; j < Q; j++) even[j] += part(k + (size_t)i * L + h) * of.q[j][i];
            for (int j = 0; j < Q; j++) {
                V all = even[j] + odd[j];
                if ((n + 1) * L > of.length[j])
                    for (int t = 0; t < W; t++) all[t] = n * L + h + t < of.length[j] ? all[t] : -INFINITY;
                most[j] = max(most[j], all);
                store_part(of.weights[j] + n * L + h, all);
            }
        }
    }
    for (int j = 0; j < Q; j++) {
        float top = -INFINITY;
        for (int t = 0; t < W; t++) top = most[j][t] > top ? most[j][t] : top;
        V totals[L / W];
        for (int h = 0; h < L / W; h++) totals[h] = V{};
        for (int n = 0; n * L < longest; n++)
            for (int h = 0; h < L / W; h++) {
                float *at = of.weights[j] + n * L + h * W;
                const V s = part(at), e = exponential(s - top), some = s > -INFINITY ? e : V{};
                totals[h] += some;
                store_part(at, some);
            }
        F total;
        memcpy(&total, totals, sizeof total);
        of.by[j] = 1.0f / sum(total);
    }
}

// Σ weight · value over N registers of channels. The last load may run past the channels of a head: pages are padded.
template <typename T, int Q, int N>
inline void mix(const T *values, size_t stride, const int32_t *table, int P, Queries<Q> &of, int begin) {
    const int longest = of.length[Q - 1];
    V acc[Q][N];
    for (int j = 0; j < Q; j++)
        for (int b = 0; b < N; b++) acc[j][b] = V{};
    for (int n = 0; n * L < longest; n++) {
        const T *v = values + table[n] * stride + begin, *soon = v;
        const int tokens = longest - n * L < L ? longest - n * L : L;
        if ((n + 1) * L < longest) soon = values + table[n + 1] * stride + begin;
        for (int t = 0; t < tokens; t++, v += P, soon += P) {
            for (size_t at = 0; at < N * W * sizeof(T); at += 64) __builtin_prefetch((const char *)soon + at);
            V some[N];
            for (int b = 0; b < N; b++) some[b] = part(v + b * W);
            for (int j = 0; j < Q; j++)
                for (int b = 0; b < N; b++) acc[j][b] += some[b] * of.weights[j][n * L + t];
        }
    }
    const int width = P - begin < N * W ? P - begin : N * W;
    for (int j = 0; j < Q; j++)
        for (int b = 0; b < N; b++) {
            const V v = acc[j][b] * of.by[j];
            if ((b + 1) * W <= width) store_part(of.y[j] + begin + b * W, v);
            else for (int i = 0; b * W + i < width; i++) of.y[j][begin + b * W + i] = v[i];
        }
}

// Q queries starting at number `first`, ordered by row, then head, so the last has the most keys.
template <typename T, int Q>
void attend_some(const Op &op, const Rows &rows, const Group &g, int kv, int first, float *scores) {
    const int P = op.head_dim, group = op.heads / op.kv_heads;
    const int32_t *table = rows.tables + (size_t)g.table * rows.page_stride;
    const size_t block = (size_t)P * L, stride = op.kv_heads * block;
    const size_t at = (size_t)op.layer * rows.pages * stride + kv * block;
    Queries<Q> of;
    for (int j = 0; j < Q; j++) {
        const int row = g.row + (first + j) / group, head = kv * group + (first + j) % group;
        turn(rows, row, op.x + (size_t)row * op.in + (size_t)head * P, P, op.number, of.q[j]);
        of.length[j] = op.form ? g.length : rows.positions[row] + 1;
        of.weights[j] = scores + (size_t)j * rows.longest;
        of.y[j] = op.y + (size_t)row * op.out + (size_t)head * P;
    }
    weigh<T, Q>((const T *)rows.keys + at, stride, table, P, of);
    const T *values = (const T *)rows.values + at;
    int begin = 0;
    constexpr int N = W == 16 ? 4 : 2;  // Q x N sums fit into the registers
    for (; begin + N * W <= P; begin += N * W) mix<T, Q, N>(values, stride, table, P, of, begin);
    for (; begin < P; begin += W) mix<T, Q, 1>(values, stride, table, P, of, begin);
}

template <typename T>
void attend_group(const Op &op, const Rows &rows, const Group &g, int kv, float *scores) {
    const int queries = g.count * (op.heads / op.kv_heads);
    int first = 0;
    for (; first + 4 <= queries; first += 4) attend_some<T, 4>(op, rows, g, kv, first, scores);
    for (; first < queries; first++) attend_some<T, 1>(op, rows, g, kv, first, scores);
}

void attend(const Op &op, const Rows &rows, std::atomic<int> &next, int me, bool write) {
    for (int job; (job = next.fetch_add(1, std::memory_order_relaxed)) < rows.n_groups * op.kv_heads;) {
        const Group &g = rows.groups[job / op.kv_heads];
        const int kv = job % op.kv_heads;
        float *scores = rows.scores + (size_t)me * NEIGHBOURS * rows.longest;
        if (write) rows.kv_bf16 ? remember<uint16_t>(op, rows, g, kv) : remember<float>(op, rows, g, kv);
        else rows.kv_bf16 ? attend_group<uint16_t>(op, rows, g, kv, scores)
                          : attend_group<float>(op, rows, g, kv, scores);
    }
}

}  // namespace
