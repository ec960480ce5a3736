/* The derivative of the default recipe's proximal steps, seen through the columns of U (see lns_quadratic.h). */
#ifndef LNS_GRAM_H
#define LNS_GRAM_H
#include <stddef.h>

#include "lns_quadratic.h"

/* gram += V'J V over the units [at, at + size) of a piece, on and above the diagonal, V = [U, u's weights, u's biases]:
 * the square of W = L'V, where J = L L' unit by unit. Where none of some hundred weights has a slope, as under a sparse
 * penalty, they cost nothing. W and its products are in float: the matrix gives a Newton step's direction, and where that
 * leads is measured in double.
 *
 * gram: (lns_gram_width, lns_gram_width), of which the first 2 * rows + 2 lines and columns are V's.
 * u: (2, LNS_PIECE), weights and biases. slopes: (3, LNS_PIECE), J as (weight, weight), (weight, bias), (bias, bias).
 * tall: scratch of lns_gram_room floats, which are 0 before the first call. O(rows^2 size). */
size_t lns_gram_width(size_t rows);
size_t lns_gram_room(size_t rows);
void lns_gram_add(double *gram, float *tall, const double *u, const double *slopes, const lns_quadratic *q, size_t at,
                  size_t size);

#endif
