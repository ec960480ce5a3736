/* Sparse group lasso with a ridge: value and proximal operator. */
#ifndef LNS_PROX_H
#define LNS_PROX_H
#include <stddef.h>
#include <stdint.h>

/* Groups lie side by side: group k is v[offsets[k] .. offsets[k + 1]), d_k entries; offsets: (groups + 1,), ascending.
 * With u = v - center, the penalty is the sum over groups of
 *     l1 * |u|_1  +  group * sqrt(d_k) * |u|_2  +  ridge * |u|_2^2.
 * center is 1 for weights and 0 for biases; all strengths >= 0. Sums in double; never fails; allocates nothing. */
double lns_penalty_f32(const float *v, float center, const int64_t *offsets, size_t groups, double l1, double group,
                       double ridge);

/* out = argmin over w of  penalty(w) + |w - v|^2 / (2 * step): soft-threshold by step * l1, shrink each group's norm by
 * step * group * sqrt(d_k), divide by 1 + 2 * step * ridge. out may be v. An entry that is shrunk to nothing is center,
 * exactly. O(entries). */
void lns_prox_f32(float *out, const float *v, float center, const int64_t *offsets, size_t groups, double l1,
                  double group, double ridge, double step);

#endif
