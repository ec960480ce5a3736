#include "lns_tile.h"

#include <string.h>

#include "lns_port.h"
#include "lns_type.h"

/* What is sorted in registers at once: so many rows, so many lanes of them. */
enum { GROUP = 16, VECTOR = 8 };

/* Where in a tile of n rows the rows first, first + stride, ... are. The row after the last, which holds nothing smaller
 * than any entry, stands for those that are not there: no comparison ever moves it. */
static void group_at(size_t *at, size_t first, size_t stride, size_t n)
{
    for (size_t k = 0; k < GROUP; k++) at[k] = (first + k * stride < n ? first + k * stride : n) * LNS_PITCH;
}

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

/* ---- float32: value in the upper half, place in the lower ---- */

enum { parts_f32 = 1 };                                       /* what a row consists of */

/* Values and the places from place on, as exchange_f32 wants them. */
LNS_INLINE void load_f32(int64_t *restrict row, const float *restrict x, size_t place, size_t apart, size_t count)
{
    (void)apart;
    for (size_t l = 0; l < count; l++) row[l] = (int64_t)ordered_f32(x[l]) * ((int64_t)1 << 32) + (int64_t)(place + l);
}

/* The smaller of each pair to low, the larger to high; places lie apart entries further on, where they lie apart. */
LNS_INLINE void exchange_f32(int64_t *restrict low, int64_t *restrict high, size_t apart, size_t count)
{
    (void)apart;
    for (size_t l = 0; l < count; l++) {
        int64_t a = low[l], b = high[l];
        low[l] = a < b ? a : b;
        high[l] = a < b ? b : a;
    }
}

/* ---- float64: values in the first n + 1 rows, places in the next ---- */

enum { parts_f64 = 2 };

LNS_INLINE void load_f64(int64_t *restrict row, const double *restrict x, size_t place, size_t apart, size_t count)
{
    for (size_t l = 0; l < count; l++) {
        row[l] = ordered_f64(x[l]);
        row[apart + l] = (int64_t)(place + l);
    }
}

LNS_INLINE void exchange_f64(int64_t *restrict low, int64_t *restrict high, size_t apart, size_t count)
{   /* By bits: with conditions instead, GCC makes scalar code of eight lanes, ten times slower. */
    for (size_t l = 0; l < count; l++) {
        int64_t a = low[l], b = high[l], at_a = low[apart + l], at_b = high[apart + l];
        int64_t swap = -(int64_t)((a > b) | ((a == b) & (at_a > at_b)));
        int64_t change = (a ^ b) & swap, moved = (at_a ^ at_b) & swap;
        low[l] = a ^ change;
        high[l] = b ^ change;
        low[apart + l] = at_a ^ moved;
        high[apart + l] = at_b ^ moved;
    }
}

/* ---- float64 without places: what is equal is the same, so nothing tells a stable order from another ---- */

enum { parts_values_f64 = 1 };
typedef double real_values_f64;

LNS_INLINE void load_values_f64(int64_t *restrict row, const double *restrict x, size_t place, size_t apart, size_t count)
{
    (void)place, (void)apart;
    for (size_t l = 0; l < count; l++) row[l] = ordered_f64(x[l]);
}

LNS_INLINE void exchange_values_f64(int64_t *restrict low, int64_t *restrict high, size_t apart, size_t count)
{
    exchange_f32(low, high, apart, count);
}

#define TYPE f32
#include "lns_tile.inc"
#define TYPE f64
#include "lns_tile.inc"
#define TYPE values_f64
#include "lns_tile.inc"
