#include "lns_update.h"

#include <math.h>

#include "lns_block.h"
#include "lns_port.h"

enum { BLOCK = 8192 };                                        /* entries that a thread takes at a time */

LNS_CLONES static void descend(float *restrict x, const float *restrict gradient, float rate, size_t count)
{
    for (size_t j = 0; j < count; j++) x[j] -= rate * gradient[j];
}

LNS_CLONES static void roll(float *restrict x, float *restrict velocity, const float *restrict gradient, float rate,
                            float momentum, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        velocity[j] = momentum * velocity[j] + gradient[j];
        x[j] -= rate * velocity[j];
    }
}

void lns_sgd_f32(float *x, float *velocity, const float *gradient, double rate, double momentum, size_t count,
                 int threads)
{
    LNS_EACH_BLOCK(k, 1, count, BLOCK, threads) {
        lns_block of = lns_block_at(k, count, BLOCK);
        size_t at = of.first;
        if (velocity) roll(x + at, velocity + at, gradient + at, (float)rate, (float)momentum, of.count);
        else descend(x + at, gradient + at, (float)rate, of.count);
    }
}

LNS_CLONES static void adam(float *restrict x, float *restrict first, float *restrict second,
                            const float *restrict gradient, float decay1, float new1, float decay2, float new2,
                            float step, float root, float tiny, float pull, float center, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        first[j] = decay1 * first[j] + new1 * gradient[j];
        second[j] = decay2 * second[j] + new2 * gradient[j] * gradient[j];
        x[j] -= pull * (x[j] - center) + step * first[j] / (sqrtf(second[j]) / root + tiny);
    }
}

void lns_adam_f32(float *x, float *first, float *second, const float *gradient, double rate, double beta1,
                  double beta2, double epsilon, double decay, size_t iteration, size_t count, int threads)
{
    double correction1 = 1 - pow(beta1, (double)iteration), correction2 = 1 - pow(beta2, (double)iteration);
    size_t units = count / 2;
    LNS_EACH_BLOCK(k, 2, units, BLOCK, threads) {             /* a row of weights, and one of biases */
        lns_block of = lns_block_at(k, units, BLOCK);
        size_t at = of.row * units + of.first;
        adam(x + at, first + at, second + at, gradient + at, (float)beta1, (float)(1 - beta1), (float)beta2,
             (float)(1 - beta2), (float)(rate / correction1), (float)sqrt(correction2), (float)epsilon,
             (float)(rate * decay), of.row == 0 ? 1 : 0, of.count);
    }
}

double lns_cosine(double rate, double floor, size_t at, size_t total)
{
    const double pi = 3.14159265358979323846;
    return floor + (rate - floor) * (1 + cos(pi * (double)at / (double)total)) / 2;
}
