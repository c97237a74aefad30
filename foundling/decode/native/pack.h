// SPDX-License-Identifier: Apache-2.0
// Weights into panels: rounded to bfloat16 or to integers, or exactly as a file of 4-bit blocks had them.

#pragma once

#include "lanes.h"

namespace {

struct Block {  // a group of weights, 4 bits each: minimum + scale · q, q in 0 to 15
    uint16_t scale, minimum;  // float16
};

// The largest error of a group (two vectors) with this scale and minimum.
inline float block_error(F a, F b, float scale, float minimum) {
    const float by = scale != 0 ? 1.0f / scale : 0.0f;
    F worst = F{};
    for (F v : {a, b}) {
        F q = __builtin_convertvector(nearest((v - minimum) * by), F);
        q = q < 0.0f ? F{} : q > 15.0f ? splat(15.0f) : q;
        const F error = v - (minimum + scale * q);
        worst = max(worst, error < 0.0f ? -error : error);
    }
    return largest(worst);
}

// Finds the scale and minimum of a group whose weights are at most 16 evenly spaced numbers, as those of GGUF's 4-bit
// blocks are. Its ends are `steps` apart, and the minimum may lie some steps beyond either end, where q = 0 is unused;
// of those that fit, the pair is taken that float16 holds best. False where none fits. The weights may have been kept in
// bfloat16: each is then off by 2^-9 of the largest, the ends that the grid is measured by too, and float16 adds to that.
// What tells a grid from other weights is that all 32 lie within an eighth of a step.
inline bool find_block(F a, F b, Block &block) {
    const float low = -largest(max(-a, -b)), high = largest(max(a, b));
    const float size = std::fabs(low) > std::fabs(high) ? std::fabs(low) : std::fabs(high), exact = size * 0x1p-22f;
    float best = INFINITY;
    for (int steps = 15; steps > 0; steps--) {
        const float step = (high - low) / steps;
        if (block_error(a, b, step, low) > step / 8) continue;
        for (int beyond = 0; beyond <= 15 - steps; beyond++)
            for (const float sign : {1.0f, -1.0f}) {
                const float end = sign > 0 ? low : high;
                const uint16_t scale = to_half(sign * step), minimum = to_half(end - sign * beyond * step);
                const float error = block_error(a, b, half(scale), half(minimum));
                if (!(error < best)) continue;
                best = error, block = {scale, minimum};
                if (best <= exact) return true;
            }
    }
    return best <= size * 0x1p-7f;
}

}  // namespace

extern "C" {

// Blocks (out, in / 32) of the weights (out, in). Returns how many of them need a minimum, the others being -8 · scale;
// or -1, at the first group that is not one of at most 16 evenly spaced numbers. With `force` such a group gets the scale
// and minimum of its range instead.
int64_t foundling_find_blocks(int out, int in, int force, const float *w, Block *blocks) {
    int64_t with_minimum = 0;
    for (size_t at = 0; at < (size_t)out * in / GROUP; at++) {
        const F a = load(w + at * GROUP), b = load(w + at * GROUP + L);
        const float low = -largest(max(-a, -b)), high = largest(max(a, b)), peak = high > -low ? high : low;
        const uint16_t scale = to_half(peak / -8.0f), minimum = to_half(-8.0f * half(scale));
        Block &block = blocks[at];
        if (block_error(a, b, half(scale), half(minimum)) <= std::fabs(peak) * 0x1p-22f) {
            block = {scale, minimum};
        } else if (find_block(a, b, block)) {
            with_minimum++;
        } else if (force) {
            block = {to_half((high - low) / 15.0f), to_half(low)};
        } else {
            return -1;
        }
    }
    return with_minimum;
}

// (out, in) float32 -> panels, rounded to bfloat16 or to integers with one scale for every span of an output's inputs.
// For INT4_MIN the scales and minima are given, for the other integers they are written.
void foundling_pack(int form, int span, int out, int in, const float *w, void *to, uint16_t *scales) {
    const int panels = (out + L - 1) / L, groups = (in + GROUP - 1) / GROUP, spans = (groups + span - 1) / span;
    for (int p = 0; p < panels; p++)
        for (int lane = 0; lane < L; lane++) {
            const bool real = p * L + lane < out;
            const float *row = w + (size_t)(p * L + lane) * in;
            if (form == F32 || form == BF16) {
                for (int k = 0; k < in; k++) {
                    const float v = real ? row[k] : 0.0f;
                    const size_t pair = ((size_t)p * ((in + 1) / 2) + k / 2) * L + lane;
                    if (form == F32) ((float *)to)[((size_t)p * in + k) * L + lane] = v;
                    else ((uint16_t *)to)[pair * 2 + k % 2] = to_bf16(v);
                }
                continue;
            }
            for (int at = 0; at < spans; at++) {
                const int begin = at * span * GROUP, wanted = begin + span * GROUP;
                const int end = wanted < groups * GROUP ? wanted : groups * GROUP;
                float most = 0, peak = 0;
                for (int i = begin; i < end && real && i < in; i++)
                    if (std::fabs(row[i]) > most) most = std::fabs(row[i]), peak = row[i];
                uint16_t *s = scales + ((size_t)p * spans + at) * (form == INT4_MIN ? 2 * L : L) + lane;
                // 4 bits hold -8 to 7: the value with the largest magnitude becomes -8
                if (form != INT4_MIN) *s = to_half(form == INT8 ? most / 127.0f : peak / -8.0f);
                const float scale = half(*s), by = scale != 0 ? 1.0f / scale : 0.0f;
                const float minimum = form == INT4_MIN ? half(s[L]) : 0.0f;
                for (int k = begin; k < end; k++) {
                    const float v = real && k < in ? row[k] : 0.0f;
                    const int i = k % GROUP;
                    if (form == INT8) {
                        int q = (int)std::lrint(v * by);
                        q = q < -127 ? -127 : q > 127 ? 127 : q;
                        uint8_t *panel = (uint8_t *)to + ((size_t)p * groups + k / GROUP) * GROUP * L;
                        panel[(i / 4) * 64 + lane * 4 + i % 4] = (uint8_t)(q + 128);
                    } else {
                        int q = (int)std::lrint((v - minimum) * by) + (form == INT4 ? 8 : 0);
                        q = q < 0 ? 0 : q > 15 ? 15 : q;
                        uint8_t *panel = (uint8_t *)to + ((size_t)p * groups + k / GROUP) * GROUP * L / 2;
                        uint8_t &byte = panel[(i / 8) * 64 + lane * 4 + i % 4];
                        byte = i % 8 < 4 ? (uint8_t)((byte & 0xf0) | q) : (uint8_t)((byte & 0x0f) | (q << 4));
                    }
                }
            }
        }
}

}
