/* Many short columns sorted at once, with their permutation. */
#ifndef LNS_SORT_H
#define LNS_SORT_H
#include <stddef.h>
#include <stdint.h>

/* sorted[:, c] = x[:, c] in ascending order, index[:, c] = where each value came from; index may be NULL, and then every
 * zero is +0.
 * x, sorted, index: (n, columns), C-contiguous, non-overlapping; 1 <= n <= LNS_MAX_ROWS, columns >= 1, threads >= 1.
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
