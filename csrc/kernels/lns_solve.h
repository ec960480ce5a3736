/* Where the default recipe's model plus a penalty is least, within the box: a semismooth Newton method. */
#ifndef LNS_SOLVE_H
#define LNS_SOLVE_H
#include <stddef.h>

#include "lns_quadratic.h"

/* Units meet only in the few numbers of U'm, m the move away from x. Were factors = M U'm known, the sites (or pieces,
 * where no norm couples units) could be minimised one by one, exactly: unit by unit given the norms of the site's weights
 * and biases, and these by Newton's method. So this solves a = U'm(a) for the 2 * rows numbers a, by Newton's method:
 * with J the derivative of m by the slope, which is that of a proximal step, its matrix is 1 + U'J U M. A handful of
 * passes over moves and changes, where proximal steps take a hundred. A step that the next would hardly be shorter than
 * is halved. Large problems begin with an eighth of their units, which stand for the rest of their site: that leads to
 * within some hundredths of the numbers for half a pass. Source: Li, Sun & Toh, A highly efficient semismooth Newton
 * augmented Lagrangian method, SIAM J. Optim. 28 (2018); Becker, Fadili & Ochs, On quasi-Newton forward-backward
 * splitting, SIAM J. Optim. 29 (2019), for proximal steps in a metric of low rank; Deuflhard, Newton Methods for Nonlinear
 * Problems, 2004, sec. 3.3, for the halving.
 *
 * out: (2 * units,). products: (2 * rows,), U'(out - x). penalty: with ends. room: scratch of 2 * units doubles.
 * True where the next step would move out by less than the inner steps' tolerance; else out is of no use.
 * O(rows^2 units) a pass, of at most 48. scratch: lns_solve_scratch doubles. */
size_t lns_solve_scratch(size_t rows, size_t groups, int threads);
int lns_quadratic_solve(float *out, double *products, const lns_quadratic *q, const lns_penalty *penalty,
                        const float *low, const float *high, double *room, double *scratch);

#endif
