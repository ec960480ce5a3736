/* Maps z -> weight * z + bias that take one sample to another, in closed form, column by column. */
#ifndef LNS_TRANSPORT_H
#define LNS_TRANSPORT_H
#include <stddef.h>

/* x: (n, columns), the source.  y: (m, columns), the target.  weight, bias: (columns,).
 * C-contiguous, non-overlapping, no NaN or infinity; n, m, columns, threads >= 1.
 * Sums in double, of differences from the first row and from the mean: as right far from 0 as near it. Differences
 * beyond 1e150, which float32 never has, may give infinities and NaN, and those below 1e-160 count as 0.
 * Never fails; allocates nothing; the bits do not depend on threads. */

/* bias = mean of y - mean of x; the weight that goes with it is 1. O(n + m) a column. */
void lns_mean_shift_f32(double *bias, const float *x, const float *y, size_t n, size_t m, size_t columns, int threads);
void lns_mean_shift_f64(double *bias, const double *x, const double *y, size_t n, size_t m, size_t columns,
                        int threads);

/* weight = deviation of y / deviation of x, both with n - 1 and m - 1 below the root; bias = mean of y - weight * mean
 * of x. The weight is 1 where the source is constant, and where n or m is 1. O(n + m) a column. */
void lns_gaussian_map_f32(double *weight, double *bias, const float *x, const float *y, size_t n, size_t m,
                          size_t columns, int threads);
void lns_gaussian_map_f64(double *weight, double *bias, const double *x, const double *y, size_t n, size_t m,
                          size_t columns, int threads);

/* weight, bias = the least of the integral over u in [0, 1] of (weight * F^-1(u) + bias - G^-1(u))^2, where F and G are
 * the distributions of x and of y; for n = m it is the sum over sorted samples. The weight is never negative; it is 1
 * where the source is constant.
 * n, m <= LNS_MAX_ROWS.  scratch: threads * lns_linear_map_scratch_f32(n, m) bytes, aligned for double; faster when
 * aligned to 64. O(n log^2 n + m log^2 m) a column. */
size_t lns_linear_map_scratch_f32(size_t n, size_t m);
size_t lns_linear_map_scratch_f64(size_t n, size_t m);
void lns_linear_map_f32(double *weight, double *bias, const float *x, const float *y, size_t n, size_t m,
                        size_t columns, void *scratch, int threads);
void lns_linear_map_f64(double *weight, double *bias, const double *x, const double *y, size_t n, size_t m,
                        size_t columns, void *scratch, int threads);

#endif
