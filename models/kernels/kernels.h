/* Shared by the kernels of this folder: rows of class scores, padded to whole vectors. */

#ifndef KERNELS_H
#define KERNELS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define LN_2 0.693147181f
#define LOG2_E 1.44269504f

/* 1-D interpolation matrix, given by the two entries of each row: 1 - weight at low, weight at high. */
typedef struct {
    const int32_t *low, *high;
    const float *weight;
} Taps;

static int64_t stride_of(int64_t classes) { return (classes + LANES - 1) / LANES * LANES; }

static void *allocate(int64_t count) {
    size_t bytes = (size_t)(count > 0 ? count : 1) * sizeof(float);
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

/* 2^t for t in [-126, 0], with an error of 2e-7. The addition rounds t to an integer in the low bits of the sum. */
static inline float exp2_negative(float t) {
    const float round = 12582912.0f; /* 1.5 * 2^23 */
    float shifted = t + round, f = t - (shifted - round);
    /* The polynomial of degree 5, 1 at 0, with the least relative error over [-1/2, 1/2]: 1e-7. */
    float p = ((0.00132647273f * f + 0.00967151299f) * f + 0.0555073358f) * f + 0.240222424f;
    p = (p * f + 0.693147004f) * f + 1.0f;
    uint32_t exponent, bits;
    memcpy(&exponent, &shifted, 4);
    memcpy(&bits, &p, 4);
    bits += exponent << 23;
    memcpy(&p, &bits, 4);
    return p;
}

/* e^d for d <= 0, by exp2_negative; NaN stays NaN. */
static inline float exp_negative(float d) {
    float t = d * LOG2_E;
    t = t < -126.0f ? -126.0f : t;
    return exp2_negative(t);
}

/* Mix two cells into `mixed` and return the largest score. */
static inline float mix_cells(const float *low, const float *high, float weight, int64_t stride, float *mixed) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top) aligned(low, high, mixed : 64)
    for (int64_t k = 0; k < stride; k++) {
        float score = low[k] + weight * (high[k] - low[k]);
        mixed[k] = score;
        top = score > top ? score : top;
    }
    return top;
}

#endif
