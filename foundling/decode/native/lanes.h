// SPDX-License-Identifier: Apache-2.0
// Vectors of 16 numbers, the structures that program.py fills, and conversions to float.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int L = 16;      // lanes: outputs of a panel, tokens of a page
constexpr int GROUP = 32;  // inputs read together; a span of groups shares one scale
#if defined(__AVX512F__)
constexpr int W = 16;      // lanes of a register: the compiler keeps vectors that are wider in memory
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(64)));
typedef float V __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef uint16_t VH __attribute__((vector_size(W * 2)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));
typedef uint8_t B __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

enum Kind : int32_t { NORM = 0, LINEAR = 1, ATTEND = 2, ACTIVATE = 3, QUANTIZE = 4 };
enum Weights : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3, INT4_MIN = 4 };  // INT4_MIN: with a minimum a group
enum Activation : int32_t { SILU_GATED = 0, GELU_TANH = 1, GELU_TANH_GATED = 2, RELU = 3, GELU = 4, GELU_GATED = 5 };

struct Rounded {  // a span of inputs as integers
    float scale;
    union {
        int32_t offset;  // correction for the weights' offset, negative
        float sum;       // for INT4_MIN: scale · Σ of the integers
    };
};

struct Op {  // mirrored by program.py
    int32_t kind, form;          // form: Weights (for QUANTIZE, of the next op), Activation, 1 for LayerNorm,
                                 // or 1 for attention that is not causal
    int32_t in, out;             // widths
    int32_t heads, kv_heads, head_dim, layer;
    float number;                // eps, or the scale of scores
    int32_t span;                // groups that share a scale
    const float *x;              // (rows, in)
    float *y;                    // (rows, out)
    const float *residual;       // (rows, out), may be y
    const void *weight;          // panels
    const uint16_t *scales;      // (panels, spans, 16) float16; INT4_MIN: (panels, groups, 2, 16), scales and minima
    const float *bias;           // (out padded)
    int8_t *xq;                  // (rows, in padded), of x
    Rounded *xs;                 // (rows, spans)
};

struct Group {  // consecutive rows of one sequence
    int32_t row, count, table, length;  // length: rows of the sequence
};

struct Rows {
    int32_t count, page_stride;  // pages of the longest table
    const int32_t *tables;       // (sequences, page_stride)
    const int32_t *positions;    // (rows)
    const float *cosine, *sine;  // (rows, head_dim) or null
    void *keys, *values;         // (layers, pages, kv_heads, head_dim, 16) and (layers, pages, kv_heads, 16, head_dim)
    int32_t pages, kv_bf16;
    float *scores;               // (threads, 4, longest)
    int32_t longest, n_groups;   // longest: a multiple of 16
    const Group *groups;         // of at most 4 rows
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
inline V part(const float *p) { V v; memcpy(&v, p, W * 4); return v; }
inline V part(const uint16_t *p) {
    VH h;
    memcpy(&h, p, W * 2);
    return (V)(__builtin_convertvector(h, VU) << 16);
}
inline void store_part(float *p, V v) { memcpy(p, &v, W * 4); }
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
inline uint16_t to_half(float v) {
#if defined(__AVX512F__)
    return (uint16_t)_cvtss_sh(v, 0);
#else
    const _Float16 rounded = (_Float16)v;
    uint16_t h;
    memcpy(&h, &rounded, 2);
    return h;
#endif
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
template <typename T>
inline T exponential(T x) {
    typedef decltype(x < x) N;
    x = x < -87.0f ? T{} - 87.0f : x;
    x = x > 88.0f ? T{} + 88.0f : x;
    T z = x * 1.44269504088896341f;
    N n = __builtin_convertvector(z + (z < 0.0f ? T{} - 0.5f : T{} + 0.5f), N);
    T f = x - __builtin_convertvector(n, T) * 0.693359375f + __builtin_convertvector(n, T) * 2.12194440e-4f;
    T p = T{} + 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    N bits = (n + 127) << 23;
    return p * (T)bits;
}

template <typename T>
inline T max(T a, T b) { return a > b ? a : b; }
#if defined(__AVX512F__)
inline float largest(F v) { return _mm512_reduce_max_ps((__m512)v); }
inline float sum(F v) { return _mm512_reduce_add_ps((__m512)v); }
inline int32_t sum(I v) { return _mm512_reduce_add_epi32((__m512i)v); }
#else
inline float largest(F v) {
    float most = v[0];
    for (int i = 1; i < L; i++) most = v[i] > most ? v[i] : most;
    return most;
}
inline float sum(F v) {
    float s = 0;
    for (int i = 0; i < L; i++) s += v[i];
    return s;
}
inline int32_t sum(I v) {
    int32_t s = 0;
    for (int i = 0; i < L; i++) s += v[i];
    return s;
}
#endif
inline I nearest(F v) { return __builtin_convertvector(v + (v < 0.0f ? splat(-0.5f) : splat(0.5f)), I); }

}  // namespace
