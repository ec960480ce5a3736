/* Many short columns sorted at once, with their permutation. */
#ifndef LNS_SORT_H
#define LNS_SORT_H
#include <stddef.h>
#include <stdint.h>

/* Columns are sorted LNS_LANES at a time, one column a SIMD lane: a tile is (n, LNS_LANES), row-major. */
enum { LNS_LANES = 16 };

/* Load columns [0, width) of x, whose rows are stride apart, into a tile; lanes past width are zero. index[i] = i. */
void lns_tile_load_f32(float *key, int32_t *index, const float *x, size_t n, size_t stride, size_t width);
void lns_tile_load_f64(double *key, int32_t *index, const double *x, size_t n, size_t stride, size_t width);

/* Sort every lane of a tile in place, ascending; index follows. Equal keys keep the order of their index, so the
 * permutation is the stable one. -0 equals +0. Keys must not be NaN. O(n log^2 n) a lane, no branch on the data. */
void lns_tile_sort_f32(float *key, int32_t *index, size_t n);
void lns_tile_sort_f64(double *key, int32_t *index, size_t n);

/* sorted[:, c] = x[:, c] in ascending order, index[:, c] = where each value came from.
 * x, sorted, index: (n, columns), C-contiguous, non-overlapping; 1 <= n < 2^31, columns >= 1, threads >= 1.
 * scratch: threads * lns_sort_scratch_f32(n) bytes, aligned for double.
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
