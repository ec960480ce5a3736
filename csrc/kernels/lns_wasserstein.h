/* One-dimensional optimal transport between empirical measures, column by column. */
#ifndef LNS_WASSERSTEIN_H
#define LNS_WASSERSTEIN_H
#include <stddef.h>
#include <stdint.h>

/* cost[c] = integral over u in [0, 1] of |F_c^-1(u) - G_c^-1(u)|^p, where F_c and G_c are the distributions of column c
 * of x and of y; grad[i, c] = coefficient[c] * d cost[c] / d x[i, c].
 *
 * cost: (columns,).  x: (n, columns), any order.  y: (m, columns), every column ascending, y_index its permutation.
 * grad: like x, or NULL when it is not wanted.  coefficient: (columns,), or NULL for ones.
 * x_weights (n,), y_weights (m,): positive or zero, each summing to one, or both NULL for equal weights; y_index is
 * read only with weights and may else be NULL.  p >= 1.
 * C-contiguous, non-overlapping, no NaN; 1 <= n <= LNS_MAX_ROWS, 1 <= m < 2^31; columns >= 1, threads >= 1.
 * scratch: threads * lns_wasserstein_scratch_f32(n) bytes, aligned for double.
 * Sums in double; never fails; allocates nothing; the bits do not depend on threads. O(n log^2 n + m) a column. */
size_t lns_wasserstein_scratch_f32(size_t n);
size_t lns_wasserstein_scratch_f64(size_t n);
void lns_wasserstein_f32(double *cost, float *grad, const float *x, const float *y, const int32_t *y_index,
                         const double *x_weights, const double *y_weights, const double *coefficient, double p,
                         size_t n, size_t m, size_t columns, void *scratch, int threads);
void lns_wasserstein_f64(double *cost, double *grad, const double *x, const double *y, const int32_t *y_index,
                         const double *x_weights, const double *y_weights, const double *coefficient, double p,
                         size_t n, size_t m, size_t columns, void *scratch, int threads);

#endif
