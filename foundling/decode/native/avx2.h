// SPDX-License-Identifier: Apache-2.0
// Integer products for CPUs with AVX2 and without VNNI. A vector of 16 lanes is two registers here, since the compiler
// keeps vectors that are wider than a register in memory.

#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace {

// As tile_int of products.h, and with its results. vpmaddubsw adds two products of an unsigned and a signed byte in 16
// bits: a group of 4-bit weights sums to at most 8 · 2 · 15 · 127 < 2^15 in each, and is widened once. For 8-bit weights
// the sign moves to the input, 2 · 128 · 127 < 2^15, and needs no correction of the offset.
template <int FORM, int R, int P>
inline void tile_avx2(const Op &op, int row, int panel, F (&total)[R][P]) {
    constexpr bool FOUR_BITS = FORM == INT4 || FORM == INT4_MIN;
    constexpr int BYTES = FOUR_BITS ? GROUP * L / 2 : GROUP * L, LINE = FORM == INT4_MIN ? 2 * L : L;
    const size_t span = FOUR_BITS ? 1 : op.span;
    const size_t groups = (op.in + GROUP - 1) / GROUP, spans = (groups + span - 1) / span;
    const uint8_t *w = (const uint8_t *)op.weight + panel * groups * BYTES;
    const uint16_t *s = op.scales + panel * spans * LINE;
    const Rounded *xs = op.xs + row * spans;
    const int8_t *x = op.xq + row * groups * GROUP;
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15), top = _mm256_set1_epi8(-128);
    __m256 sums[R][P][2];
    for (int i = 0; i < R * P * 2; i++) (&sums[0][0][0])[i] = _mm256_setzero_ps();
    for (size_t at = 0, g = 0; at < spans; at++) {
        __m256i acc[R][P][2];
        for (int i = 0; i < R * P * 2; i++) (&acc[0][0][0])[i] = _mm256_setzero_si256();
        for (const size_t end = g + span < groups ? g + span : groups; g < end; g++, x += GROUP)
            for (int k = 0; k < BYTES / 64; k++)
                for (int p = 0; p < P; p++)
                    for (int h = 0; h < 2; h++) {
                        const __m256i b = _mm256_loadu_si256((const __m256i *)(w + (p * groups + g) * BYTES + k * 64) + h);
                        for (int part = 0; part < (FOUR_BITS ? 2 : 1); part++) {
                            const __m256i four = _mm256_and_si256(part ? _mm256_srli_epi16(b, 4) : b, low);
                            const __m256i eight = _mm256_xor_si256(b, top), size = _mm256_abs_epi8(eight);
                            for (int r = 0; r < R; r++) {
                                int32_t inputs;
                                memcpy(&inputs, x + r * groups * GROUP + k * (FOUR_BITS ? 8 : 4) + part * 4, 4);
                                const __m256i v = _mm256_set1_epi32(inputs);
                                __m256i &to = acc[r][p][h];
                                if constexpr (FOUR_BITS) to = _mm256_add_epi16(to, _mm256_maddubs_epi16(four, v));
                                else to = _mm256_add_epi32(to, _mm256_madd_epi16(
                                         _mm256_maddubs_epi16(size, _mm256_sign_epi8(v, eight)), ones));
                            }
                        }
                    }
        for (int p = 0; p < P; p++)
            for (int h = 0; h < 2; h++) {
                const uint16_t *line = s + (p * spans + at) * LINE + h * 8;
                const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)line));
                for (int r = 0; r < R; r++) {
                    const Rounded &of = xs[r * spans + at];
                    __m256i whole = acc[r][p][h];
                    if constexpr (FOUR_BITS) whole = _mm256_madd_epi16(whole, ones);
                    if constexpr (FORM == INT4) whole = _mm256_add_epi32(whole, _mm256_set1_epi32(of.offset));
                    sums[r][p][h] += _mm256_cvtepi32_ps(whole) * (scale * of.scale);
                    if constexpr (FORM == INT4_MIN)
                        sums[r][p][h] += _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(line + L))) * of.sum;
                }
            }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) memcpy(&total[r][p], sums[r][p], 64);
}

}  // namespace
