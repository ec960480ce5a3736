/* The default recipe's model of the loss near a point, and the point at which it is least. */
#ifndef LNS_QUADRATIC_H
#define LNS_QUADRATIC_H
#include <stddef.h>
#include <stdint.h>

#include "lns_prox.h"

/* gradient . m + m . B m / 2  for a move m away from x, where
 *     B = damping * A + the BFGS update of A by (moves, changes).
 * A holds a symmetric 2 x 2 block for each unit's (weight, bias). The update is never written out: with the 2 * rows
 * columns of U = [A moves, changes] it is A + U M U', M being the correction. So a product costs one pass over moves and
 * changes, in float as they come; sums and everything else are in double.
 *
 * blocks: (3, units): (weight, weight), (weight, bias), (bias, bias).  x, gradient: (2 * units,), weights first.
 * moves, changes: (rows, 2 * units), in any order: that of age enters through `oldest` alone. correction: (2 * rows, 2 *
 * rows), symmetric. All three NULL where rows is 0; rows <= LNS_MOST_ROWS.
 * starts: (pieces + 1,), ascending from 0 to units: no piece has more than LNS_PIECE units or lies in two sites. A sum
 * is made piece by piece, then over the pieces in their order: the bits do not depend on threads, threads >= 1.
 * C-contiguous; what a kernel writes overlaps nothing else. Nothing fails (what is not finite goes through); nothing is
 * allocated. Source: Nocedal & Wright, Numerical Optimization, 2006, sec. 7.2. */
typedef struct {
    const double *blocks, *correction;
    const float *x, *gradient, *moves, *changes;
    const int64_t *starts;
    double damping;
    size_t units, rows, pieces;
    int threads;
} lns_quadratic;

enum { LNS_PIECE = 512, LNS_MOST_ROWS = 64, LNS_INNER_STEPS = 100 };

/* How many pieces there are; their starts too, unless NULL. offsets: (sites + 1,), ascending from 0. */
size_t lns_pieces(int64_t *starts, const int64_t *offsets, size_t sites);

/* blocks: each unit's curvature (3, units), raised, with a floor for weights, and scaled by site to what the last three
 * moves met; without any, as much as keeps the promised gain below `loss`.  q: without blocks and correction.
 * oldest: the row with which moves begin, if they are read in a ring.  parts: 8 * pieces + 2 * sites doubles. */
void lns_quadratic_blocks(double *blocks, const lns_quadratic *q, const double *curvature, const int64_t *offsets,
                          size_t sites, size_t oldest, double loss, double *parts);

/* low, high: (2 * units,): weights may change by a quarter, and keep their sign; biases by half of a response. */
void lns_quadratic_box(float *low, float *high, const float *x, const double *curvature, size_t units, int threads);

/* correction: M.  q: without correction.  O(rows^2 units).  scratch: lns_correction_scratch doubles. */
size_t lns_correction_scratch(size_t rows, size_t pieces);
void lns_quadratic_correction(double *correction, const lns_quadratic *q, size_t oldest, double *scratch);

/* The model at a point. products: (2 * rows,), U'(point - x), or NULL where they are not known.
 * parts: (2 * rows + 2) * pieces doubles. */
double lns_quadratic_value(const lns_quadratic *q, const float *point, const double *products, double *parts);

/* out: x and the move that minimises the model plus ridge |out - identity|^2, by conjugate gradients with the blocks as
 * preconditioner. All of their vectors lie in the span of the gradient and U, so they run on 2 * rows + 1 coefficients,
 * after one pass for the inner products.  O(rows^2 units).  scratch: lns_newton_scratch doubles. */
size_t lns_newton_scratch(size_t rows, size_t pieces);
void lns_quadratic_newton(float *out, const lns_quadratic *q, double ridge, double *scratch);

/* steps: one over the diagonal of damping * A + A, times what keeps proximal steps from overshooting: the largest
 * eigenvalue, by ten power iterations from `direction`.  p: scratch of 2 * units doubles.
 * parts: (2 * rows + 1) * pieces doubles. */
void lns_quadratic_steps(float *steps, double *p, const lns_quadratic *q, const double *direction, double *parts);

/* An accelerated proximal gradient method that restarts (O'Donoghue & Candes, Found. Comput. Math. 15 (2015), 3.2), one
 * step of it in two stages with a penalty's proximal step between them. Point and the one before it; pace: 2 + 4 * rows
 * doubles [speed, momentum, U'(point - x), U'(before - x)], {1, 0, 0...} at the start, where both points are x.
 *
 * ahead = point + momentum * (point - before);  slope: the model's gradient there. */
void lns_quadratic_ahead(float *ahead, float *slope, const lns_quadratic *q, const float *point, const float *before,
                         const double *pace);

/* fresh, what the proximal step gave, is clipped to the box and becomes the point, the point the one before it: the
 * caller's pointers move on, pace does here. True where it moved too little to go on.
 * parts: (2 * rows + 3) * pieces doubles. */
int lns_quadratic_settle(float *fresh, double *pace, const lns_quadratic *q, const float *point, const float *before,
                         const float *low, const float *high, const float *steps, double *parts);

/* Up to LNS_INNER_STEPS such steps with this penalty (see lns_prox.h), from x; points: (3, 2 * units).
 * Returns which of the points is the last.  parts: (2 * rows + 3) * pieces + 6 * groups doubles.
 * by_site: its groups are sites, ends: (groups + 1,), at which piece each begins. */
typedef struct {
    const int64_t *offsets, *order, *ends;
    lns_strengths weights, biases;
    size_t groups, widest;
    float *rows;                                              /* as for lns_proximal_step_f32 */
} lns_penalty;

size_t lns_quadratic_minimise(float *points, float *ahead, float *slope, double *pace, const lns_quadratic *q,
                              const lns_penalty *penalty, const float *low, const float *high, const float *steps,
                              double *parts);

#endif
