/* The optimisers' vector work over the flat parameter vector. */
#ifndef LNS_OPTIM_H
#define LNS_OPTIM_H
#include <stddef.h>

/* x, gradient and state: (count,), C-contiguous, non-overlapping. Arithmetic in float, in the order in which the
 * published recipe does it, so that its trajectories come out the same. Nothing fails; nothing is allocated. */

/* velocity = momentum * velocity + gradient;  x -= rate * velocity.  velocity starts at 0; NULL when momentum is 0. */
void lns_sgd_f32(float *x, float *velocity, const float *gradient, double rate, double momentum, size_t count);

/* Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1); first and second start at 0; iteration counts from 1. */
void lns_adam_f32(float *x, float *first, float *second, const float *gradient, double rate, double beta1,
                  double beta2, double epsilon, size_t iteration, size_t count);

/* out = x - step * gradient: the explicit half of a proximal step. out may be x. */
void lns_gradient_step_f32(float *out, const float *x, const float *gradient, double step, size_t count);

/* With move = to - from:  *slope = <gradient, move>,  *square = |move|^2; in double. What a line search compares. */
void lns_movement_f32(double *slope, double *square, const float *to, const float *from, const float *gradient,
                      size_t count);

/* Learning rate of iteration 0 <= at <= total on a cosine from rate to floor (Loshchilov & Hutter, arXiv 1608.03983). */
double lns_cosine(double rate, double floor, size_t at, size_t total);

#endif
