/* What the default recipe's loss adds to the distance of the units and takes off it, and three sums over moves. */
#ifndef LNS_RIDGE_H
#define LNS_RIDGE_H
#include <stddef.h>
#include <stdint.h>

/* Sums are made over blocks of fixed size, then over the blocks in their order: the bits do not depend on threads, >= 1.
 * C-contiguous, non-overlapping, every size >= 1. Nothing fails (what is not finite goes through); nothing is allocated.
 * parts: 3 * lns_ridge_blocks(count) doubles, where count is the number of entries summed. */
size_t lns_ridge_blocks(size_t count);

/* The ridge: strength times the sum over units of stretch u^2 + 2 cross u b + shift b^2, u = weight - 1 and b = bias, and
 * its gradient. x, gradient: (2 * units,), weights first; stretch, cross, shift: (units,); parts for `units`. */
double lns_ridge(float *gradient, const float *x, const double *stretch, const double *cross, const double *shift,
                 double strength, size_t units, double *parts, int threads);

/* The sum of a[j] * b[j]: what a BLAS would add up in an order that depends on its threads. */
double lns_dot(const double *a, const double *b, size_t count, double *parts, int threads);

/* sums = (to - from)^2, (to - from) * (after - before), (after - before)^2, each summed over all entries; the differences
 * in float. */
void lns_move_sums(double *sums, const float *to, const float *from, const float *after, const float *before,
                   size_t count, double *parts, int threads);

/* slopes[i, j] *= factor[j], in float: what a loss that is a function of the units' distances makes of their slopes.
 * slopes: (n, units); factor: (units,). */
void lns_scale_columns(float *slopes, const double *factor, size_t n, size_t units, int threads);

/* The largest |x|, of float; 0 where all are NaN. */
float lns_largest(const float *x, size_t count, double *parts, int threads);

#endif
