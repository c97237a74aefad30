// SPDX-License-Identifier: Apache-2.0
// A pre-norm transformer's step as a list of operations over rows of activations, run by a few threads with a barrier
// after each. Weights are read once, in panels of 16 outputs, so that every load is whole and sums run along lanes.
//
// A row is one token: its place in its sequence and the pages that hold that sequence's keys and values. Rows of one
// sequence and of many may be mixed. What a row gets does not depend on the others: sums have one order, whatever the
// number of rows.

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int L = 16;      // lanes: outputs of a panel, tokens of a page
constexpr int GROUP = 32;  // inputs that share a scale

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));
typedef uint8_t B __attribute__((vector_size(64)));

enum Kind : int32_t { NORM = 0, LINEAR = 1, ATTEND = 2, ACTIVATE = 3, QUANTIZE = 4 };
enum Weights : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };
enum Activation : int32_t { SILU_GATED = 0, GELU_TANH = 1, GELU_TANH_GATED = 2, RELU = 3, GELU = 4, GELU_GATED = 5 };

struct Op {  // mirrored by program.py
    int32_t kind, form;          // form: Weights, Activation, or 1 for LayerNorm
    int32_t in, out;             // widths
    int32_t heads, kv_heads, head_dim, layer;
    float number, unused;        // eps, or the scale of scores
    const float *x;              // (rows, in)
    float *y;                    // (rows, out)
    const float *residual;       // (rows, out), may be y
    const void *weight;          // panels
    const uint16_t *scales;      // (panels, groups, 16) float16
    const float *bias;           // (out padded)
    int8_t *xq;                  // (rows, in padded), of x
    float *xs;                   // (rows, groups): scale, then the sum of the integers
};

struct Rows {
    int32_t count, page_stride;  // pages of the longest table
    const int32_t *tables;       // (rows, page_stride)
    const int32_t *positions;    // (rows)
    const float *cosine, *sine;  // (rows, head_dim) or null
    void *keys, *values;         // (layers, pages, kv_heads, head_dim, 16) and (layers, pages, kv_heads, 16, head_dim)
    int32_t pages, kv_bf16;
    float *scores;               // (threads, longest)
    int32_t longest, unused;     // a multiple of 16
};

inline F splat(float v) { return F{} + v; }
inline F load(const float *p) { F v; memcpy(&v, p, 64); return v; }
inline void store(float *p, F v) { memcpy(p, &v, 64); }
inline F load(const uint16_t *p) {  // bfloat16
    H h;
    memcpy(&h, p, 32);
    U u = __builtin_convertvector(h, U) << 16;
    return (F)u;
}
inline uint16_t to_bf16(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void put(float *p, float v) { *p = v; }
inline void put(uint16_t *p, float v) { *p = to_bf16(v); }

inline float half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x0400) {
        uint32_t u = sign | ((rest << 13) + 0x38000000);
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
    float f = (float)rest * 5.9604644775390625e-8f;
    return sign ? -f : f;
}
inline F halves(const uint16_t *p) {
#if defined(__AVX512F__)
    __m256i h;
    memcpy(&h, p, 32);
    return (F)_mm512_cvtph_ps(h);
#else
    F v;
    for (int i = 0; i < L; i++) v[i] = half(p[i]);
    return v;
#endif
}

// e^x for x <= 88, by 2^n · 2^f with a polynomial of degree 6 in f; relative error below 3e-7
inline F exponential(F x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    F z = x * 1.44269504088896341f;
    I n = __builtin_convertvector(z + (z < 0.0f ? splat(-0.5f) : splat(0.5f)), I);
    F f = x - __builtin_convertvector(n, F) * 0.693359375f + __builtin_convertvector(n, F) * 2.12194440e-4f;
    F p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    I bits = (n + 127) << 23;
    return p * (F)bits;
}

inline float sum(F v) {
    float s = 0;
    for (int i = 0; i < L; i++) s += v[i];
    return s;
}

// --- threads ---------------------------------------------------------------------------------------------------------

struct Team {
    int size;
    std::vector<std::thread> workers;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<uint64_t> job{0};
    std::atomic<int> arrived{0};
    std::atomic<uint32_t> phase{0};
    std::atomic<int> next[2];
    std::atomic<bool> over{false};
    const Op *ops = nullptr;
    int n_ops = 0;
    const Rows *rows = nullptr;

    explicit Team(int n);
    ~Team();
    void work(int me);
    void barrier(int op);
};

inline void pause_() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// The last to arrive clears the counter that all have used: the next operation takes the other one.
void Team::barrier(int op) {
    uint32_t mine = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
        arrived.store(0, std::memory_order_relaxed);
        next[op & 1].store(0, std::memory_order_relaxed);
        phase.store(mine + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == mine;)
        if (++spins < 20000) pause_();
        else std::this_thread::yield();
}

// --- products --------------------------------------------------------------------------------------------------------

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

// --- what is not a product -------------------------------------------------------------------------------------------

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
            op.xs[((size_t)row * groups + g) * 2] = scale;
            op.xs[((size_t)row * groups + g) * 2 + 1] = (float)total;
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

// What is to be done is copied first: after the last barrier the next job may be written at once.
void Team::work(int me) {
    const Op *of = ops;
    const Rows &on = *rows;
    const int n = n_ops;
    for (int i = 0, turn = 0; i < n; i++) {
        const Op &op = of[i];
        switch (op.kind) {
            case NORM: norm(op, on, next[turn & 1]); break;
            case LINEAR: linear(op, on, next[turn & 1]); break;
            case ACTIVATE: activate(op, on, next[turn & 1]); break;
            case QUANTIZE: quantize(op, on, next[turn & 1]); break;
            default:
                attend(op, on, next[turn & 1], me, true);
                barrier(turn++);
                attend(op, on, next[turn & 1], me, false);
        }
        barrier(turn++);
    }
}

Team::Team(int n) : size(n) {
    next[0] = next[1] = 0;
    for (int me = 1; me < size; me++)
        workers.emplace_back([this, me] {
            for (uint64_t seen = 0;;) {
                for (int spins = 0; job.load(std::memory_order_acquire) == seen && !over; spins++) {
                    if (spins < 4000) { pause_(); continue; }
                    std::unique_lock<std::mutex> lock(mutex);
                    wake.wait(lock, [&] { return job.load(std::memory_order_acquire) != seen || over; });
                }
                if (over) return;
                seen++;
                work(me);
            }
        });
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        over = true;
    }
    wake.notify_all();
    for (auto &worker : workers) worker.join();
}

}  // namespace

extern "C" {

int foundling_op_size() { return (int)sizeof(Op); }
int foundling_rows_size() { return (int)sizeof(Rows); }
void *foundling_team(int threads) { return new Team(threads); }
void foundling_disband(void *team) { delete (Team *)team; }

void foundling_run(void *of, const Op *ops, int n_ops, const Rows *rows) {
    Team &team = *(Team *)of;
    team.ops = ops, team.n_ops = n_ops, team.rows = rows;
    {
        std::lock_guard<std::mutex> lock(team.mutex);
        team.job.fetch_add(1, std::memory_order_release);
    }
    team.wake.notify_all();
    team.work(0);
}

// (out, in) float32 -> panels, rounded to bfloat16 or to integers with one scale for every 32 inputs of an output
void foundling_pack(int form, int out, int in, const float *w, void *to, uint16_t *scales) {
    const int panels = (out + L - 1) / L, groups = (in + GROUP - 1) / GROUP;
    for (int p = 0; p < panels; p++)
        for (int lane = 0; lane < L; lane++) {
            const bool real = p * L + lane < out;
            const float *row = w + (size_t)(p * L + lane) * in;
            if (form == F32 || form == BF16) {
                for (int k = 0; k < in; k++) {
                    const size_t at = ((size_t)p * in + k) * L + lane;
                    const float v = real ? row[k] : 0.0f;
                    if (form == F32) ((float *)to)[at] = v;
                    else ((uint16_t *)to)[at] = to_bf16(v);
                }
                continue;
            }
            for (int g = 0; g < groups; g++) {
                float most = 0, peak = 0;
                for (int i = 0; i < GROUP && real && g * GROUP + i < in; i++) {
                    const float v = row[g * GROUP + i];
                    if (std::fabs(v) > most) most = std::fabs(v), peak = v;
                }
                // 4 bits reach from -8 to 7: the value furthest from 0 is put at -8
                const float wanted = form == INT8 ? most / 127.0f : peak / -8.0f;
#if defined(__AVX512F__)
                const uint16_t h = (uint16_t)_cvtss_sh(wanted, 0);
#else
                const _Float16 rounded = (_Float16)wanted;
                uint16_t h;
                memcpy(&h, &rounded, 2);
#endif
                scales[((size_t)p * groups + g) * L + lane] = h;
                const float scale = half(h), by = scale != 0 ? 1.0f / scale : 0.0f;
                for (int i = 0; i < GROUP; i++) {
                    const float v = real && g * GROUP + i < in ? row[g * GROUP + i] : 0.0f;
                    int q = (int)std::lrint(v * by);
                    if (form == INT8) {
                        q = q < -127 ? -127 : q > 127 ? 127 : q;
                        uint8_t *panel = (uint8_t *)to + ((size_t)p * groups + g) * GROUP * L;
                        panel[(i / 4) * 64 + lane * 4 + i % 4] = (uint8_t)(q + 128);
                    } else {
                        q = q < -8 ? -8 : q > 7 ? 7 : q;
                        uint8_t *panel = (uint8_t *)to + ((size_t)p * groups + g) * GROUP * L / 2;
                        uint8_t &byte = panel[(i / 8) * 64 + lane * 4 + i % 4];
                        byte = i % 8 < 4 ? (uint8_t)((byte & 0xf0) | (q + 8)) : (uint8_t)((byte & 0x0f) | ((q + 8) << 4));
                    }
                }
            }
        }
}

}
