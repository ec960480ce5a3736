/* Sparse group lasso with a ridge over the flat vector of maps: proximal gradient step and value, in one call. */
#ifndef LNS_PROX_H
#define LNS_PROX_H
#include <stddef.h>
#include <stdint.h>

/* For a group u of d entries:  l1 * |u|_1  +  group * sqrt(d) * |u|_2  +  ridge * |u|_2^2.  All >= 0. */
typedef struct {
    double l1, group, ridge;
} lns_strengths;

/* x = [weights, biases]: (2 * units,), with units = offsets[groups]; u is x - 1 for weights and x for biases.
 * Group k has the units order[offsets[k]] .. order[offsets[k + 1] - 1], and counts twice: its weights, its biases.
 * order: (units,), a permutation, or NULL for groups that lie side by side (sites); offsets: (groups + 1,), ascending
 * from 0. A permutation rather than a label per unit, so that a group's sums are made in one place, by one thread.
 *
 * Entry j has the step size t[j] = step * scales[j], finite and >= 0; scales: (2 * units,), or NULL for all ones.
 *     v = x - t * gradient, in float, or x where gradient is NULL;
 *     out = argmin over w of  penalty(w) + sum over j of (w[j] - v[j])^2 / (2 * t[j]).
 * An entry with t = 0 stays; one that is shrunk to nothing is 1 or 0, exactly.
 * sums[0] = penalty(out);  sums[1] = <gradient, out - x>,  sums[2] = |out - x|^2, both 0 where gradient is NULL.
 * With one step size, entries are computed in float, as in the published recipe: out is right to an ulp or two of
 * max(|x|, center), and is v where nothing shrinks it. With scales all is double, the minimiser right to 1e-12 before it
 * is rounded. The penalty is that of out before rounding, summed in double; the other two are right to 1e-7.
 *
 * out: (2 * units,), x is not changed.  parts: 6 * groups doubles of scratch.  rows: scratch of 4 * widest floats a
 * thread, where widest is the largest group's d; not looked at where order is NULL.  threads >= 1.
 * O(units); where scales differ inside a group, a few passes more. One thread owns a group, and the groups' sums are
 * added up in their order: the bits do not depend on threads. Never fails; allocates nothing. */
void lns_proximal_step_f32(float *out, double *sums, const float *x, const float *gradient, const float *scales,
                           const int64_t *offsets, const int64_t *order, lns_strengths weights, lns_strengths biases,
                           double step, double *parts, float *rows, size_t groups, size_t widest, int threads);

/* The same for the weights (center 1) or biases (center 0) of one group, all arrays (count,), and nothing but out. */
void lns_proximal_group_f32(float *out, const float *x, const float *gradient, const float *steps, float center,
                            lns_strengths by, size_t count);

#endif
