/* A tile: some columns side by side, sorted together. The kernels that sort are made of it. */
#ifndef LNS_TILE_H
#define LNS_TILE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lns_block.h"

/* Columns are sorted LNS_LANES at a time, side by side in a tile: rows of LNS_LANES integers that sort like the values.
 * Beside its value each entry keeps its place, which is row * LNS_LANES + lane of where it was loaded. In float32 one
 * integer holds both, value above and place below, so that a comparison is a minimum and a maximum; in float64 the
 * places follow in rows of their own. Rows lie LNS_PITCH apart, a cache line more than they are long: rows a power of
 * two apart, which a sort compares, would else compete for one set of the cache. */
enum { LNS_LANES = 64, LNS_PITCH = LNS_LANES + 8 };

/* Places are below 2^32. */
#define LNS_MAX_ROWS ((size_t)1 << 26)

/* int64 entries of a tile of n rows; one row more than that serves the sort. */
size_t lns_tile_entries_f32(size_t n);
size_t lns_tile_entries_f64(size_t n);

/* Load columns [0, width) of x, whose rows are stride apart, into a tile, and sort every lane, ascending; lanes past
 * width hold zeros. Equal values keep the order of their place, so the permutation is the stable one; -0 equals +0.
 * Values must not be NaN; n <= LNS_MAX_ROWS. O(n log^2 n) a lane, no branch on the data. */
void lns_tile_sort_f32(int64_t *tile, const float *x, size_t n, size_t stride, size_t width);
void lns_tile_sort_f64(int64_t *tile, const double *x, size_t n, size_t stride, size_t width);

/* The same without places: all entries of a value are alike, so float64 takes half the room and half the time. */
static inline size_t lns_tile_entries_values_f32(size_t n) { return lns_tile_entries_f32(n); }
size_t lns_tile_entries_values_f64(size_t n);
void lns_tile_sort_values_f64(int64_t *tile, const double *x, size_t n, size_t stride, size_t width);
static inline void lns_tile_sort_values_f32(int64_t *tile, const float *x, size_t n, size_t stride, size_t width)
{
    lns_tile_sort_f32(tile, x, n, stride, width);
}

/* Row i of a tile of n rows: its places, in the lower half of each entry. */
static inline const int64_t *lns_tile_places_f32(const int64_t *tile, size_t i, size_t n)
{
    (void)n;
    return tile + i * LNS_PITCH;
}

static inline const int64_t *lns_tile_places_f64(const int64_t *tile, size_t i, size_t n)
{
    return tile + (n + 1 + i) * LNS_PITCH;
}

/* Row i of a tile: its values (a zero is +0). The integers are the bits of the values, with the lower bits of negative
 * ones flipped. Inline, so that loops over rows keep them in registers. */
static inline void lns_tile_values_f32(float *restrict values, const int64_t *restrict tile, size_t i)
{
    for (size_t l = 0; l < LNS_LANES; l++) {
        int32_t bits = (int32_t)(tile[i * LNS_PITCH + l] >> 32);
        bits ^= (bits >> 31) & INT32_MAX;
        memcpy(values + l, &bits, sizeof bits);
    }
}

static inline void lns_tile_values_f64(double *restrict values, const int64_t *restrict tile, size_t i)
{
    for (size_t l = 0; l < LNS_LANES; l++) {
        int64_t bits = tile[i * LNS_PITCH + l];
        bits ^= (bits >> 63) & INT64_MAX;
        memcpy(values + l, &bits, sizeof bits);
    }
}

/* The tiles that columns are cut into. What follows LNS_EACH_TILE is done for each: columns [first, first + count) of
 * lns_tile_at(k, columns), which is as wide as a tile but for the last one. */
#define LNS_EACH_TILE(k, columns, threads) LNS_EACH_BLOCK(k, 1, columns, LNS_LANES, threads)

static inline lns_block lns_tile_at(ptrdiff_t k, size_t columns) { return lns_block_at(k, columns, LNS_LANES); }

#endif
