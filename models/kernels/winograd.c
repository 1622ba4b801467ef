/* Tile transforms of winograd.py, whose torch code is the reference for this file. Each function processes the tiles
 * first <= t < end. Tensors are float32 and channels last, with a multiple of 16 channels.
 */

#include <stdint.h>

#define LANES 16
#define TILE 4
#define POINTS 6
#define SHARE 9 /* points that are multiplied and stored together */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    int64_t images, height, width;  /* of the input or output tensor */
    int64_t channels, dilation;
    int64_t tile_rows, tile_columns; /* of one phase */
} Grid;

typedef struct {
    int64_t image, y, x; /* of the first pixel, including padding */
} Place;

static Place place_of(const Grid *grid, int64_t tile) {
    const int64_t column = tile % grid->tile_columns, phase_x = tile / grid->tile_columns % grid->dilation;
    tile /= grid->tile_columns * grid->dilation;
    const int64_t row = tile % grid->tile_rows, phase_y = tile / grid->tile_rows % grid->dilation;
    tile /= grid->tile_rows * grid->dilation;
    const int64_t step = TILE * grid->dilation;
    return (Place){tile, row * step + phase_y, column * step + phase_x};
}

/* Offset of point p of a tile in its share (T, 9 points, C). */
static int64_t offset_of(int64_t tile, int p, int64_t channels) { return (tile * SHARE + p % SHARE) * channels; }

/* points = B' d for six values that are `step` vectors apart. */
static inline void to_points(const Vector *d, int step, Vector *points, int points_step) {
    const Vector d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vector even = d4 - d2, odd = 2.0f * (d3 - d1);
    points[0] = 4.0f * d0 - 5.0f * d2 + d4;
    points[points_step] = d3 + d4 - 4.0f * (d1 + d2);
    points[2 * points_step] = d4 - d3 + 4.0f * (d1 - d2);
    points[3 * points_step] = even + odd;
    points[4 * points_step] = even - odd;
    points[5 * points_step] = 4.0f * d1 - 5.0f * d3 + d5;
}

/* pixels = A' m for six values that are `step` vectors apart. */
static inline void to_pixels(const Vector *m, int step, Vector *pixels, int pixels_step) {
    const Vector sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const Vector sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    pixels[0] = m[0] + sum1 + sum2;
    pixels[pixels_step] = difference1 + 2.0f * difference2;
    pixels[2 * pixels_step] = sum1 + 4.0f * sum2;
    pixels[3 * pixels_step] = difference1 + 8.0f * difference2 + m[5 * step];
}

/* input (N, H, W, C) -> points, 4 shares of (T, 9, C) */
void winograd_input(const Grid *grid, const float *input, float *const *points, int64_t first, int64_t end) {
    static const float zeros[LANES];
    const int64_t channels = grid->channels, d = grid->dilation;
    for (int64_t tile = first; tile < end; tile++) {
        const Place place = place_of(grid, tile);
        const float *pixels[POINTS * POINTS];
        for (int i = 0; i < POINTS; i++)
            for (int j = 0; j < POINTS; j++) {
                const int64_t y = place.y + (i - 1) * d, x = place.x + (j - 1) * d;
                const int inside = y >= 0 && y < grid->height && x >= 0 && x < grid->width;
                const int64_t pixel = (place.image * grid->height + y) * grid->width + x;
                pixels[i * POINTS + j] = inside ? input + pixel * channels : 0;
            }
        for (int64_t c = 0; c < channels; c += LANES) {
            Vector values[POINTS * POINTS], half[POINTS * POINTS];
            for (int p = 0; p < POINTS * POINTS; p++)
                values[p] = *(const Vector *)(pixels[p] ? pixels[p] + c : zeros);
            for (int j = 0; j < POINTS; j++) to_points(values + j, POINTS, half + j, POINTS);
            for (int i = 0; i < POINTS; i++) to_points(half + i * POINTS, 1, values + i * POINTS, 1);
            for (int p = 0; p < POINTS * POINTS; p++) 
                *(Vector *)(points[p / SHARE] + offset_of(tile, p, channels) + c) = values[p];
        }
    }
}

/* products, 4 shares of (T, 9, O), -> output (N, H, W, O) = tiles + bias + shortcut, with ReLU if `relu`. The shortcut
 * may be NULL or `output` itself.
 */
void winograd_output(const Grid *grid, const float *const *products, const float *bias, const float *shortcut, int64_t relu,
                     float *output, int64_t first, int64_t end) {
    const int64_t channels = grid->channels, d = grid->dilation;
    for (int64_t tile = first; tile < end; tile++) {
        const Place place = place_of(grid, tile);
        for (int64_t c = 0; c < channels; c += LANES) {
            Vector values[POINTS * POINTS], half[TILE * POINTS], pixels[TILE * TILE];
            for (int p = 0; p < POINTS * POINTS; p++) 
                values[p] = *(const Vector *)(products[p / SHARE] + offset_of(tile, p, channels) + c);
            for (int j = 0; j < POINTS; j++) to_pixels(values + j, POINTS, half + j, POINTS);
            for (int i = 0; i < TILE; i++) to_pixels(half + i * POINTS, 1, pixels + i * TILE, 1);
            const Vector offset = *(const Vector *)(bias + c);
            for (int i = 0; i < TILE; i++) {
                const int64_t y = place.y + i * d;
                if (y >= grid->height) break;
                for (int j = 0; j < TILE; j++) {
                    const int64_t x = place.x + j * d;
                    if (x >= grid->width) break;
                    const int64_t at = ((place.image * grid->height + y) * grid->width + x) * channels + c;
                    Vector value = pixels[i * TILE + j] + offset;
                    if (shortcut) value += *(const Vector *)(shortcut + at);
                    if (relu) value = (Vector)((Mask)value & ~(Mask)(value < 0.0f));
                    *(Vector *)(output + at) = value;
                }
            }
        }
    }
}
