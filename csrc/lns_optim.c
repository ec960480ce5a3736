#include "lns_optim.h"

#include <math.h>

#include "lns_port.h"

void lns_gradient_step_f32(float *out, const float *x, const float *gradient, double step, size_t count)
{   /* No restrict, since out may be x: compilers then check for overlap once and vectorise all the same. */
    float rate = (float)step;
    for (size_t j = 0; j < count; j++) out[j] = x[j] - rate * gradient[j];
}

void lns_sgd_f32(float *x, float *velocity, const float *gradient, double rate, double momentum, size_t count)
{
    if (!velocity) {
        lns_gradient_step_f32(x, x, gradient, rate, count);
        return;
    }
    for (size_t j = 0; j < count; j++) velocity[j] = (float)momentum * velocity[j] + gradient[j];
    lns_gradient_step_f32(x, x, velocity, rate, count);
}

LNS_CLONES static void adam(float *restrict x, float *restrict first, float *restrict second,
                            const float *restrict gradient, float decay1, float new1, float decay2, float new2,
                            float step, float root, float tiny, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        first[j] = decay1 * first[j] + new1 * gradient[j];
        second[j] = decay2 * second[j] + new2 * gradient[j] * gradient[j];
        x[j] -= step * first[j] / (sqrtf(second[j]) / root + tiny);
    }
}

void lns_adam_f32(float *x, float *first, float *second, const float *gradient, double rate, double beta1,
                  double beta2, double epsilon, size_t iteration, size_t count)
{
    double correction1 = 1 - pow(beta1, (double)iteration), correction2 = 1 - pow(beta2, (double)iteration);
    adam(x, first, second, gradient, (float)beta1, (float)(1 - beta1), (float)beta2, (float)(1 - beta2),
         (float)(rate / correction1), (float)sqrt(correction2), (float)epsilon, count);
}

void lns_movement_f32(double *slope, double *square, const float *to, const float *from, const float *gradient,
                      size_t count)
{
    double inner = 0, norm = 0;
    for (size_t j = 0; j < count; j++) {
        double move = (double)to[j] - (double)from[j];
        inner += move * (double)gradient[j];
        norm += move * move;
    }
    *slope = inner;
    *square = norm;
}

double lns_cosine(double rate, double floor, size_t at, size_t total)
{
    const double pi = 3.14159265358979323846;
    return floor + (rate - floor) * (1 + cos(pi * (double)at / (double)total)) / 2;
}
