/* Cross-entropy of upsampled logits and its gradient, without storing the upsampled logits. The torch code of
 * cross_entropy.py is the reference. Logits are (rows, columns, classes), float32, with classes padded to whole vectors
 * by scores that never win.
 */

#include "kernels.h"

/* Compute the output rows first <= y < end of one image. `loss` receives the sum over the pixels; its derivative is
 * added to `gradient` (band rows, columns, classes). Row 0 of the band is row_taps->low[first]. Returns 0 for success,
 * 1 when out of memory, 2 for a label that is not a class.
 */
int cross_entropy_rows(const float *logits, int64_t columns, int64_t classes, const Taps *row_taps,
                       const Taps *column_taps, const int32_t *labels, int64_t width, int64_t ignore_index,
                       double *loss, float *gradient, int64_t first, int64_t end) {
    const int64_t stride = stride_of(classes), row_size = columns * stride;
    float *mixed = allocate(row_size), *row_gradient = allocate(row_size), *scores = allocate(stride);
    int result = !mixed || !row_gradient || !scores;
    double sum = 0;
    for (int64_t y = first; y < end && !result; y++) {
        const int64_t low = row_taps->low[y], high = row_taps->high[y];
        const float weight = row_taps->weight[y];
        const float *low_row = logits + low * row_size, *high_row = logits + high * row_size;
#pragma omp simd aligned(mixed, row_gradient : 64)
        for (int64_t i = 0; i < row_size; i++) {
            mixed[i] = low_row[i] + weight * (high_row[i] - low_row[i]);
            row_gradient[i] = 0;
        }
        for (int64_t x = 0; x < width; x++) {
            const int64_t label = labels[y * width + x];
            if (label == ignore_index) continue;
            if (label < 0 || label >= classes) {
                result = 2;
                break;
            }
            const int64_t a = column_taps->low[x] * stride, b = column_taps->high[x] * stride;
            const float right = column_taps->weight[x], left = 1 - right;
            const float top = mix_cells(mixed + a, mixed + b, right, stride, scores);
            const float own = scores[label] - top;
            float total = 0;
#pragma omp simd reduction(+ : total) aligned(scores : 64)
            for (int64_t k = 0; k < stride; k++) {
                scores[k] = exp_negative(scores[k] - top);
                total += scores[k];
            }
            sum += (double)logf(total) - own;
            const float share = 1 / total;
            float *left_gradient = row_gradient + a, *right_gradient = row_gradient + b;
            scores[label] -= total;
            if (a == b) {
#pragma omp simd aligned(scores, left_gradient : 64)
                for (int64_t k = 0; k < stride; k++) left_gradient[k] += share * scores[k];
                continue;
            }
#pragma omp simd aligned(scores, left_gradient, right_gradient : 64)
            for (int64_t k = 0; k < stride; k++) {
                const float slope = share * scores[k];
                left_gradient[k] += left * slope;
                right_gradient[k] += right * slope;
            }
        }
        float *low_gradient = gradient + (low - row_taps->low[first]) * row_size;
        float *high_gradient = gradient + (high - row_taps->low[first]) * row_size;
#pragma omp simd aligned(row_gradient : 64)
        for (int64_t i = 0; i < row_size; i++) low_gradient[i] += (1 - weight) * row_gradient[i];
#pragma omp simd aligned(row_gradient : 64)
        for (int64_t i = 0; i < row_size; i++) high_gradient[i] += weight * row_gradient[i];
    }
    *loss = sum;
    free(mixed);
    free(row_gradient);
    free(scores);
    return result;
}
