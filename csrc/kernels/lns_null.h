/* What relabelling the samples at random does to one-dimensional optimal transport costs, column by column. */
#ifndef LNS_NULL_H
#define LNS_NULL_H
#include <stddef.h>
#include <stdint.h>

enum { LNS_WORDS = 4, LNS_BLOCK = 64 * LNS_WORDS };           /* of a sample's labels in a block of relabellings */

/* Relabelling r calls n of the n + m rows of x source and the others target, and cost[r, c] is W_p^p between the two in
 * column c (lns_wasserstein.h, equal weights). Relabelling 0 is the observed one; the others are the null:
 *
 *   mean[c], std[c] = mean and standard deviation of cost[1:, c]
 *   p_value[c]      = (1 + how many of cost[1:, c] are >= cost[0, c]) / relabellings
 *
 * x: (n + m, columns).  mean, std, p_value: (columns,).
 * labels: (blocks, n + m, LNS_WORDS) with blocks = ceil(relabellings / LNS_BLOCK). Bit r of labels[b, s, w] says
 * whether row s is a source in relabelling (b * LNS_WORDS + w) * 64 + r. Exactly n rows are, in each, those that fill
 * the last block included.
 * C-contiguous, non-overlapping, no NaN; n, m >= 1; n + m <= LNS_MAX_ROWS; relabellings >= 2; p, columns, threads >= 1.
 * scratch: threads * lns_null_scratch_f32(n + m, relabellings) bytes, aligned for double; faster when aligned to 64.
 * The size is SIZE_MAX where it would overflow.
 * All relabellings go through the same arithmetic: equal ones cost the same to the last bit. Sums in double; never
 * fails; allocates nothing; the bits do not depend on threads. One sort and O((n + m) * relabellings) a column. */
size_t lns_null_scratch_f32(size_t rows, size_t relabellings);
size_t lns_null_scratch_f64(size_t rows, size_t relabellings);
void lns_null_f32(double *mean, double *std, double *p_value, const float *x, const uint64_t *labels, double p,
                  size_t n, size_t m, size_t columns, size_t relabellings, void *scratch, int threads);
void lns_null_f64(double *mean, double *std, double *p_value, const double *x, const uint64_t *labels, double p,
                  size_t n, size_t m, size_t columns, size_t relabellings, void *scratch, int threads);

#endif
