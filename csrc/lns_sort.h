/* Many short columns sorted at once, with their permutation. */
#ifndef LNS_SORT_H
#define LNS_SORT_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Columns are sorted LNS_LANES at a time, side by side in a tile: n rows of LNS_LANES integers that sort like the values.
 * In float32 one integer holds value and index, so that a comparison is a minimum and a maximum; in float64 the indices
 * follow in n rows of their own. */
enum { LNS_LANES = 64 };

/* int64 entries of a tile of n rows. */
size_t lns_tile_entries_f32(size_t n);
size_t lns_tile_entries_f64(size_t n);

/* Load columns [0, width) of x, whose rows are stride apart, into a tile; lanes past width hold zeros. */
void lns_tile_load_f32(int64_t *tile, const float *x, size_t n, size_t stride, size_t width);
void lns_tile_load_f64(int64_t *tile, const double *x, size_t n, size_t stride, size_t width);

/* Sort every lane of a tile in place, ascending. Equal values keep the order of their index, so the permutation is the
 * stable one; -0 equals +0. Values must not be NaN; n < 2^31. O(n log^2 n) a lane, no branch on the data. */
void lns_tile_sort_f32(int64_t *tile, size_t n);
void lns_tile_sort_f64(int64_t *tile, size_t n);

/* Row i of a tile: its LNS_LANES values (a zero is +0), and from which row of x each came. Inline, so that loops over
 * rows keep it in registers. The integers are the bits of the values, with the lower bits of negative ones flipped. */
static inline void lns_tile_row_f32(float *restrict values, int32_t *restrict index, const int64_t *restrict tile,
                                    size_t i, size_t n)
{
    (void)n;
    for (size_t l = 0; l < LNS_LANES; l++) {
        int64_t entry = tile[i * LNS_LANES + l];
        int32_t bits = (int32_t)(entry >> 32);
        bits ^= (bits >> 31) & INT32_MAX;
        memcpy(values + l, &bits, sizeof bits);
        index[l] = (int32_t)(entry & INT32_MAX);
    }
}

static inline void lns_tile_row_f64(double *restrict values, int32_t *restrict index, const int64_t *restrict tile,
                                    size_t i, size_t n)
{
    for (size_t l = 0; l < LNS_LANES; l++) {
        int64_t bits = tile[i * LNS_LANES + l];
        bits ^= (bits >> 63) & INT64_MAX;
        memcpy(values + l, &bits, sizeof bits);
        index[l] = (int32_t)tile[(n + i) * LNS_LANES + l];
    }
}

/* sorted[:, c] = x[:, c] in ascending order, index[:, c] = where each value came from.
 * x, sorted, index: (n, columns), C-contiguous, non-overlapping; 1 <= n < 2^31, columns >= 1, threads >= 1.
 * scratch: threads * lns_sort_scratch_f32(n) bytes, aligned for double; faster when aligned to 64.
 * Never fails; allocates nothing; the bits do not depend on threads. */
size_t lns_sort_scratch_f32(size_t n);
size_t lns_sort_scratch_f64(size_t n);
void lns_sort_f32(float *sorted, int32_t *index, const float *x, size_t n, size_t columns, void *scratch, int threads);
void lns_sort_f64(double *sorted, int32_t *index, const double *x, size_t n, size_t columns, void *scratch,
                  int threads);

/* Position of the first NaN or infinity among count values, or count. */
size_t lns_first_nonfinite_f32(const float *x, size_t count);
size_t lns_first_nonfinite_f64(const double *x, size_t count);

#endif
