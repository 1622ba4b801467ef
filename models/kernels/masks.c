/* One pass from class scores at stride 8 to masks and statistics. interpolation.py describes the mathematics, and the
 * torch code of masks.py is the reference for this file, which never stores a plane of classes x pixels.
 *
 * Threads call the same function on the same Output and take chunks of rows from it until none is left. One thread
 * processes a chunk row by row into the chunk's own tallies, so that sums do not depend on the number of threads.
 *
 * Scores are (rows, columns, classes). Scratch memory pads classes to whole vectors ("stride"); the padding holds a
 * score that never wins and a probability of zero.
 */

#include "kernels.h"

#define NEVER -1e30f
#define LOW_CONFIDENCE 0.5f

/* Tally of one class in a chunk; maxima are half open. */
typedef struct {
    int64_t count, x_sum, y_sum, x_min, y_min, x_max, y_max;
} Tally;

typedef struct {
    int64_t height, width, classes;
    int64_t chunk_rows, next_chunk, end_chunk;
    int64_t cell_side;
    int64_t valid_row;    /* row of the output that is the first one of `valid` */
    const uint8_t *valid; /* (rows of this call, width), 0 where a pixel is left out of the tallies; NULL: none is */
    void *ids;            /* (height, width), uint8 up to 256 classes, uint16 beyond */
    float *confidence;    /* (height, width), or NULL */
    double *entropy;      /* (height), sums of rows */
    int32_t *low;         /* (height, columns of cells), counts of pixels with low confidence */
    Tally *tallies;       /* (chunks, classes), initially zero */
    double *confidences;  /* (chunks, classes), initially zero */
} Output;

typedef struct {
    int32_t *ids;
    float *confidence, *entropy;
} Row;

/* One axis of a scaled image covered by crops. */
typedef struct {
    Taps output; /* output pixels from scaled ones */
    Taps crop;   /* pixels of a crop from cells of its logits */
    int64_t size, crops, crop_size, cells;
    const int32_t *starts; /* first pixel of each crop, below 0 if the crop is padded */
    const float *share;    /* weight of one crop in each scaled pixel */
} Axis;

typedef struct {
    Axis rows, columns;
    const float *const *logits; /* (crop rows, crop columns, mirrors), NULL if no row of this call needs the crop */
} Scale;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int row_allocate(Row *row, int64_t width) {
    row->ids = allocate(width);
    row->confidence = allocate(width);
    row->entropy = allocate(width);
    return row->ids && row->confidence && row->entropy;
}

static void row_free(Row *row) {
    free(row->ids);
    free(row->confidence);
    free(row->entropy);
}

static int64_t take_chunk(Output *out) { return __atomic_fetch_add(&out->next_chunk, 1, __ATOMIC_RELAXED); }

/* log(p) for p > 0, with a relative error of 1e-7 near 1. */
static inline float log_positive(float p) {
    uint32_t bits;
    memcpy(&bits, &p, 4);
    int32_t exponent = (int32_t)(bits - 0x3f2aaaab) >> 23; /* leaves a factor between 2/3 and 4/3 */
    bits -= (uint32_t)exponent << 23;
    float f, q;
    memcpy(&f, &bits, 4);
    f -= 1.0f;
    /* log(1 + f) / f: the polynomial of degree 8, 1 at 0, with the least relative error. */
    q = (((0.140263632f * f - 0.153885469f) * f + 0.139958069f) * f - 0.164159596f) * f + 0.200111687f;
    q = (((q * f - 0.250078201f) * f + 0.333331972f) * f - 0.499999374f) * f + 1.0f;
    return (float)exponent * LN_2 + f * q;
}

/* Mix two rows of cells and pad the classes of each cell to the stride. */
static void mix_rows(const float *low, const float *high, float weight, int64_t cells, int64_t classes, float *out) {
    const int64_t stride = stride_of(classes);
    for (int64_t cell = 0; cell < cells; cell++, low += classes, high += classes, out += stride) {
#pragma omp simd
        for (int64_t k = 0; k < classes; k++) out[k] = low[k] + weight * (high[k] - low[k]);
        for (int64_t k = classes; k < stride; k++) out[k] = NEVER;
    }
}

/* Reduce the logits of one pixel to its class (the first of equals), the probability of the class, and the entropy. */
static inline void reduce_logits(const float *logits, float top, int32_t stride, int64_t x, Row *row) {
    float total = 0, moment = 0;
    int32_t first = stride;
#pragma omp simd reduction(+ : total, moment) reduction(min : first) aligned(logits : 64)
    for (int32_t k = 0; k < stride; k++) {
        float below = logits[k] - top;
        int32_t candidate = below == 0 ? k : stride;
        first = candidate < first ? candidate : first;
        float t = below * LOG2_E;
        t = t < -126.0f ? -126.0f : t; /* keeps NaN */
        float exponential = exp2_negative(t);
        total += exponential;
        moment += exponential * t;
    }
    row->ids[x] = first;
    row->confidence[x] = 1 / total;
    row->entropy[x] = logf(total) - LN_2 * moment / total;
}

/* Give pixels that are not valid an id that is not tallied, and neither low confidence nor entropy. */
static void leave_out(const Row *row, const uint8_t *valid, int64_t width) {
    for (int64_t x = 0; x < width; x++) {
        if (valid[x]) continue;
        row->ids[x] = -1;
        row->confidence[x] = 1;
        row->entropy[x] = 0;
    }
}

/* Write row y of the output and add it to the tallies of its chunk, one run of equal classes at a time. */
static void finish_row(Output *out, const Row *row, int64_t y) {
    const int64_t width = out->width, chunk = y / out->chunk_rows, start = y * width, side = out->cell_side;
    if (out->valid) leave_out(row, out->valid + (y - out->valid_row) * width, width);
    double entropy = 0;
    for (int64_t x = 0; x < width; x++) entropy += row->entropy[x];
    out->entropy[y] = entropy;
    int32_t *low = out->low + y * ((width + side - 1) / side);
    for (int64_t x = 0; x < width; x += side, low++) {
        const int64_t end = smaller(x + side, width);
        int32_t count = 0;
        for (int64_t i = x; i < end; i++) count += row->confidence[i] < LOW_CONFIDENCE;
        *low = count;
    }
    if (out->confidence) memcpy(out->confidence + start, row->confidence, (size_t)width * sizeof(float));

    for (int64_t x = 0, end; x < width; x = end) {
        /* If the scores contain NaN, there is no largest score, and any class will do. */
        const int32_t id = row->ids[x] < out->classes ? row->ids[x] : 0;
        double confidence = 0;
        for (end = x; end < width && row->ids[end] == row->ids[x]; end++) confidence += row->confidence[end];
        if (out->classes <= 256)
            memset((uint8_t *)out->ids + start + x, id, (size_t)(end - x));
        else
            for (int64_t i = x; i < end; i++) ((uint16_t *)out->ids)[start + i] = (uint16_t)id;
        if (id < 0) continue;

        Tally *tally = out->tallies + chunk * out->classes + id;
        out->confidences[chunk * out->classes + id] += confidence;
        if (!tally->count) *tally = (Tally){.x_min = x, .y_min = y};
        tally->count += end - x;
        tally->x_sum += (x + end - 1) * (end - x) / 2;
        tally->y_sum += y * (end - x);
        if (x < tally->x_min) tally->x_min = x;
        if (end > tally->x_max) tally->x_max = end;
        tally->y_max = y + 1;
    }
}

/* Label an image from logits (h, columns, classes). Returns 0 for success, 1 when out of memory. */
int label_logits(const float *logits, int64_t columns, const Taps *ys, const Taps *xs, Output *out) {
    const int64_t classes = out->classes, stride = stride_of(classes);
    float *cells = allocate(columns * stride), *mixed = allocate(stride);
    Row row;
    const int allocated = row_allocate(&row, out->width) && cells && mixed;
    for (int64_t chunk; allocated && (chunk = take_chunk(out)) < out->end_chunk;) {
        int64_t y = chunk * out->chunk_rows;
        const int64_t end = smaller(y + out->chunk_rows, out->height);
        for (; y < end; y++) {
            const int64_t row_length = columns * classes;
            mix_rows(logits + ys->low[y] * row_length, logits + ys->high[y] * row_length, ys->weight[y], columns,
                     classes, cells);
            for (int64_t x = 0; x < out->width; x++) {
                const float *left = cells + xs->low[x] * stride, *right = cells + xs->high[x] * stride;
                float top = mix_cells(left, right, xs->weight[x], stride, mixed);
                reduce_logits(mixed, top, (int32_t)stride, x, &row);
            }
            finish_row(out, &row, y);
        }
    }
    free(cells);
    free(mixed);
    row_free(&row);
    return !allocated;
}

/* Overwrite the logits of one pixel with exponentials and add their softmax, times `share`, to `sum`. */
static inline void add_softmax(float *logits, float top, float share, int64_t stride, float *sum) {
    float total = 0;
#pragma omp simd reduction(+ : total) aligned(logits : 64)
    for (int64_t k = 0; k < stride; k++) {
        float t = (logits[k] - top) * LOG2_E;
        t = t < -100.0f ? -100.0f : t; /* keeps shares of it normal: subnormal numbers are slow */
        float exponential = exp2_negative(t);
        logits[k] = exponential;
        total += exponential;
    }
    share /= total;
#pragma omp simd aligned(logits, sum : 64)
    for (int64_t k = 0; k < stride; k++) sum[k] += share * logits[k];
}

/* Reduce the probabilities of one pixel like reduce_logits. */
static inline void reduce_probabilities(const float *probabilities, int32_t stride, int64_t x, Row *row) {
    float top = -INFINITY, moment = 0;
    int32_t first = stride;
#pragma omp simd reduction(max : top) aligned(probabilities : 64)
    for (int32_t k = 0; k < stride; k++) top = probabilities[k] > top ? probabilities[k] : top;
#pragma omp simd reduction(+ : moment) reduction(min : first) aligned(probabilities : 64)
    for (int32_t k = 0; k < stride; k++) {
        float p = probabilities[k];
        int32_t candidate = p == top ? k : stride;
        first = candidate < first ? candidate : first;
        moment += p * log_positive(p + 1e-37f); /* a clamp would make gcc branch */
    }
    row->ids[x] = first;
    row->confidence[x] = top >= 0 ? top : NAN;
    row->entropy[x] = -moment;
}

typedef struct {
    float *cells, *mixed;
} CropScratch;

/* Add row `u` of one crop's softmax to the scaled row `sum`. */
static void add_crop_row(const float *logits, const Scale *scale, int64_t u, int64_t start, int mirrored, float share,
                         int64_t classes, const CropScratch *scratch, float *sum) {
    const Axis *columns = &scale->columns;
    const int64_t stride = stride_of(classes), row = columns->cells * classes;
    const Taps *rows = &scale->rows.crop, *taps = &columns->crop;
    mix_rows(logits + rows->low[u] * row, logits + rows->high[u] * row, rows->weight[u], columns->cells, classes,
             scratch->cells);
    const int64_t end = smaller(start + columns->crop_size, columns->size);
    for (int64_t x = start > 0 ? start : 0; x < end; x++) {
        const int64_t v = mirrored ? columns->crop_size - 1 - (x - start) : x - start;
        const float *left = scratch->cells + taps->low[v] * stride, *right = scratch->cells + taps->high[v] * stride;
        float top = mix_cells(left, right, taps->weight[v], stride, scratch->mixed);
        add_softmax(scratch->mixed, top, share * columns->share[x], stride, sum + x * stride);
    }
}

/* Compute row y of the averaged probabilities of a scaled image, (columns, stride), times `share`. */
static void scaled_row(const Scale *scale, int64_t mirrors, int64_t y, float share, int64_t classes,
                       const CropScratch *scratch, float *sum) {
    const Axis *rows = &scale->rows, *columns = &scale->columns;
    memset(sum, 0, (size_t)(columns->size * stride_of(classes)) * sizeof(float));
    share *= rows->share[y] / (float)mirrors;
    for (int64_t i = 0; i < rows->crops; i++) {
        const int64_t u = y - rows->starts[i];
        if (u < 0 || u >= rows->crop_size) continue;
        for (int64_t j = 0; j < columns->crops * mirrors; j++)
            add_crop_row(scale->logits[i * columns->crops * mirrors + j], scale, u, columns->starts[j / mirrors],
                         j % mirrors == 1, share, classes, scratch, sum);
    }
}

/* Two rows of averaged probabilities of a scaled image, and an output row interpolated between them. */
typedef struct {
    float *rows[2], *mixed;
    int64_t which[2];
} ScaleScratch;

static int scale_allocate(ScaleScratch *scratch, int64_t count) {
    for (int i = 0; i < 2; i++) {
        scratch->rows[i] = allocate(count);
        scratch->which[i] = -1;
    }
    scratch->mixed = allocate(count);
    return scratch->rows[0] && scratch->rows[1] && scratch->mixed;
}

static void scale_free(ScaleScratch *scratch) {
    free(scratch->rows[0]);
    free(scratch->rows[1]);
    free(scratch->mixed);
}

/* Compute output row y of one scale in scratch->mixed. Source rows are kept: consecutive output rows share them. */
static void prepare_scale(const Scale *scale, int64_t mirrors, int64_t y, float share, int64_t classes,
                          const CropScratch *crop_scratch, ScaleScratch *scratch) {
    const Taps *taps = &scale->rows.output;
    const int32_t needed[2] = {taps->low[y], taps->high[y]};
    for (int i = 0; i < 2; i++) {
        const int slot = needed[i] % 2;
        if (scratch->which[slot] == needed[i]) continue;
        scaled_row(scale, mirrors, needed[i], share, classes, crop_scratch, scratch->rows[slot]);
        scratch->which[slot] = needed[i];
    }
    const float *low = scratch->rows[needed[0] % 2], *high = scratch->rows[needed[1] % 2];
    const float weight = taps->weight[y];
    float *mixed = scratch->mixed;
    const int64_t count = scale->columns.size * stride_of(classes);
#pragma omp simd aligned(low, high, mixed : 64)
    for (int64_t i = 0; i < count; i++) mixed[i] = low[i] + weight * (high[i] - low[i]);
}

/* Add pixel x of one scale to `sum`. If inlined, gcc would jam the loop over scales and not vectorize. */
__attribute__((noinline)) static void add_scale(const Scale *scale, const ScaleScratch *scratch, int64_t x,
                                                int64_t stride, float *sum) {
    const Taps *taps = &scale->columns.output;
    const float *low = scratch->mixed + taps->low[x] * stride, *high = scratch->mixed + taps->high[x] * stride;
    const float weight = taps->weight[x];
#pragma omp simd aligned(low, high, sum : 64)
    for (int64_t k = 0; k < stride; k++) sum[k] += low[k] + weight * (high[k] - low[k]);
}

/* Label an image from the logits (row cells, column cells, classes) of crops at several scales; each crop is followed
 * by its mirror image if `mirrors` is 2. Returns 0 for success, 1 when out of memory. */
int label_crops(const Scale *scales, int64_t num_scales, int64_t mirrors, Output *out) {
    const int64_t classes = out->classes, stride = stride_of(classes);
    const float share = 1.0f / (float)num_scales;
    int64_t most_cells = 0;
    for (int64_t s = 0; s < num_scales; s++)
        if (scales[s].columns.cells > most_cells) most_cells = scales[s].columns.cells;
    CropScratch crop_scratch = {allocate(most_cells * stride), allocate(stride)};
    ScaleScratch *scratch = calloc((size_t)num_scales, sizeof(ScaleScratch));
    float *sum = allocate(stride);
    Row row;
    int allocated = row_allocate(&row, out->width) && crop_scratch.cells && crop_scratch.mixed && scratch && sum;
    for (int64_t s = 0; allocated && s < num_scales; s++)
        allocated = scale_allocate(&scratch[s], scales[s].columns.size * stride);

    for (int64_t chunk; allocated && (chunk = take_chunk(out)) < out->end_chunk;) {
        int64_t y = chunk * out->chunk_rows;
        const int64_t end = smaller(y + out->chunk_rows, out->height);
        for (; y < end; y++) {
            for (int64_t s = 0; s < num_scales; s++)
                prepare_scale(&scales[s], mirrors, y, share, classes, &crop_scratch, &scratch[s]);
            for (int64_t x = 0; x < out->width; x++) {
                memset(sum, 0, (size_t)stride * sizeof(float));
                for (int64_t s = 0; s < num_scales; s++) add_scale(&scales[s], &scratch[s], x, stride, sum);
                reduce_probabilities(sum, (int32_t)stride, x, &row);
            }
            finish_row(out, &row, y);
        }
    }
    for (int64_t s = 0; scratch && s < num_scales; s++) scale_free(&scratch[s]);
    free(scratch);
    free(sum);
    free(crop_scratch.cells);
    free(crop_scratch.mixed);
    row_free(&row);
    return !allocated;
}
