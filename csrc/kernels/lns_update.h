/* The optimisers' vector work over the flat parameter vector. */
#ifndef LNS_UPDATE_H
#define LNS_UPDATE_H
#include <stddef.h>

/* x, gradient and state: (count,), C-contiguous, non-overlapping; threads >= 1. Arithmetic in float, in the order in
 * which the published recipe does it, so that its trajectories come out the same. Every entry by itself, so that the
 * bits do not depend on threads. Nothing fails; nothing is allocated. */

/* velocity = momentum * velocity + gradient;  x -= rate * velocity.  velocity starts at 0; NULL when momentum is 0. */
void lns_sgd_f32(float *x, float *velocity, const float *gradient, double rate, double momentum, size_t count,
                 int threads);

/* Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1); first and second start at 0; iteration counts from 1. With a decay,
 * AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) towards the identity map: x = [weights, biases], count is
 * even, and first of all x -= rate * decay * (x - center), where center is 1 for weights and 0 for biases. */
void lns_adam_f32(float *x, float *first, float *second, const float *gradient, double rate, double beta1,
                  double beta2, double epsilon, double decay, size_t iteration, size_t count, int threads);

/* Learning rate of iteration 0 <= at <= total on a cosine from rate to floor (Loshchilov & Hutter, arXiv 1608.03983). */
double lns_cosine(double rate, double floor, size_t at, size_t total);

#endif
