#include "lns_sort.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"

/* ---- values as integers that sort like them: flip the lower bits of negative ones; adding 0 makes -0 a +0 ---- */

static inline int32_t ordered_f32(float x)
{
    int32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static inline int64_t ordered_f64(double x)
{
    int64_t bits;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 63) & INT64_MAX);
}

/* ---- float32: value in the upper half, index in the lower ---- */

size_t lns_tile_entries_f32(size_t n) { return n * LNS_LANES; }

LNS_CLONES static void load_row_f32(int64_t *restrict row, const float *restrict x, size_t i)
{
    for (size_t l = 0; l < LNS_LANES; l++) row[l] = (int64_t)ordered_f32(x[l]) * ((int64_t)1 << 32) + (int64_t)i;
}

static inline void exchange_f32(int64_t *tile, size_t i, size_t j, size_t n)
{
    int64_t *restrict low = tile + i * LNS_LANES, *restrict high = tile + j * LNS_LANES;
    (void)n;
    for (size_t l = 0; l < LNS_LANES; l++) {
        int64_t a = low[l], b = high[l];
        low[l] = a < b ? a : b;
        high[l] = a < b ? b : a;
    }
}

/* ---- float64: values in the first n rows, indices in the next n ---- */

size_t lns_tile_entries_f64(size_t n) { return 2 * n * LNS_LANES; }

LNS_CLONES static void load_row_f64(int64_t *restrict row, const double *restrict x)
{
    for (size_t l = 0; l < LNS_LANES; l++) row[l] = ordered_f64(x[l]);
}

static inline void exchange_f64(int64_t *tile, size_t i, size_t j, size_t n)
{
    int64_t *restrict low = tile + i * LNS_LANES, *restrict high = tile + j * LNS_LANES;
    int64_t *restrict low_at = low + n * LNS_LANES, *restrict high_at = high + n * LNS_LANES;
    for (size_t l = 0; l < LNS_LANES; l++) {
        int64_t a = low[l], b = high[l], at_a = low_at[l], at_b = high_at[l];
        int swap = (a > b) | ((a == b) & (at_a > at_b));
        low[l] = swap ? b : a;
        high[l] = swap ? a : b;
        low_at[l] = swap ? at_b : at_a;
        high_at[l] = swap ? at_a : at_b;
    }
}

/* A full row at once; the last tile of a matrix may be narrower than that. */
void lns_tile_load_f32(int64_t *tile, const float *x, size_t n, size_t stride, size_t width)
{
    for (size_t i = 0; i < n; i++) {
        float padded[LNS_LANES] = {0};
        if (width < LNS_LANES) memcpy(padded, x + i * stride, width * sizeof *x);
        load_row_f32(tile + i * LNS_LANES, width < LNS_LANES ? padded : x + i * stride, i);
    }
}

void lns_tile_load_f64(int64_t *tile, const double *x, size_t n, size_t stride, size_t width)
{
    for (size_t i = 0; i < n; i++) {
        double padded[LNS_LANES] = {0};
        if (width < LNS_LANES) memcpy(padded, x + i * stride, width * sizeof *x);
        load_row_f64(tile + i * LNS_LANES, width < LNS_LANES ? padded : x + i * stride);
        for (size_t l = 0; l < LNS_LANES; l++) tile[(n + i) * LNS_LANES + l] = (int64_t)i;
    }
}

/* The rest is the same text for both precisions: REAL is the type, NAME(f) its symbol. */
#define REAL float
#define NAME(f) f##_f32
#include "lns_sort_body.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(f) f##_f64
#include "lns_sort_body.h"
