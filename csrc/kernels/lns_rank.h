/* How well the values of a column tell two samples apart. */
#ifndef LNS_RANK_H
#define LNS_RANK_H
#include <stddef.h>

/* Of column c as the score of a classifier that calls an entry positive where it reaches a threshold:
 *
 *   auroc[c]     = the share of the n * m pairs of a positive and a negative entry in which the positive one is larger,
 *                  those in which both are equal counted half: the area under the ROC curve, by trapezoids
 *   precision[c] = average precision, the sum over thresholds, which are the distinct values from the largest down, of
 *                  precision there * the recall that the threshold adds: not interpolated, and ties enter together
 *
 * auroc, precision: (columns,).  positive: (n, columns).  negative: (m, columns). -0 equals +0.
 * C-contiguous, non-overlapping, no NaN; n, m >= 1; n + m <= LNS_MAX_ROWS; columns, threads >= 1.
 * scratch: threads * lns_rank_scratch_f32(n + m) bytes, aligned for double; faster when aligned to 64.
 * Counts are exact; auroc is rounded once. Never fails; allocates nothing; the bits do not depend on threads, nor on
 * anything of the values but their order. O((n + m) log^2 (n + m)) a column. */
size_t lns_rank_scratch_f32(size_t rows);
size_t lns_rank_scratch_f64(size_t rows);
void lns_rank_f32(double *auroc, double *precision, const float *positive, const float *negative, size_t n, size_t m,
                  size_t columns, void *scratch, int threads);
void lns_rank_f64(double *auroc, double *precision, const double *positive, const double *negative, size_t n, size_t m,
                  size_t columns, void *scratch, int threads);

#endif
