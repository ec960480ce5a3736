#include "check.h"
#include "lns_update.h"

static void test_steps_of(size_t count)
{
    float *start = random_floats(count), *gradient = random_floats(count), *x = NEW(float, count);
    float *velocity = random_floats(count), *before = NEW(float, count);
    float *first = random_floats(count), *second = random_floats(count);
    int sgd = 1, adam = 1, decay = 1;
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, NULL, gradient, 0.25, 0, count, THREADS);
    for (size_t j = 0; j < count; j++)
        sgd &= is_close((double)x[j], (double)start[j] - 0.25 * (double)gradient[j], 1e-6);
    memcpy(before, velocity, count * sizeof *before);
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, velocity, gradient, 0.25, 0.5, count, THREADS);
    for (size_t j = 0; j < count; j++) {
        double speed = 0.5 * (double)before[j] + (double)gradient[j];
        sgd &= is_close((double)velocity[j], speed, 1e-6);
        sgd &= is_close((double)x[j], (double)start[j] - 0.25 * speed, 1e-6);
    }
    for (size_t j = 0; j < count; j++) {
        first[j] = second[j] = 0;
        x[j] = start[j];
        gradient[j] += gradient[j] > 0 ? 0.1f : -0.1f;
    }
    for (size_t k = 1; k <= 3; k++)
        lns_adam_f32(x, first, second, gradient, 0.01, 0.9, 0.99, 1e-8, 0, k, count, THREADS);
    for (size_t j = 0; j < count; j++)                        /* a steady gradient: three whole steps */
        adam &= is_close((double)x[j], (double)start[j] - 0.03 * (gradient[j] > 0 ? 1 : -1), 1e-5);
    for (size_t j = 0; j < count; j++) first[j] = second[j] = gradient[j] = 0;
    memcpy(x, start, count * sizeof *x);
    lns_adam_f32(x, first, second, gradient, 0.5, 0.9, 0.99, 1e-8, 0.5, 1, count, THREADS);
    for (size_t j = 0; j < count; j++) {
        double center = j < count / 2 ? 1 : 0;
        decay &= is_close((double)x[j] - center, 0.75 * ((double)start[j] - center), 1e-6);
    }
    check(sgd, "lns_sgd_f32");
    check(adam, "lns_adam_f32");
    check(decay, "lns_adam_f32: decay towards the identity");
    free(start); free(gradient); free(x); free(velocity); free(before); free(first); free(second);
}

static void test_cosine(void)
{
    int right = lns_cosine(0.1, 0.01, 0, 1) == 0.1 && is_close(lns_cosine(0.1, 0.01, 7, 7), 0.01, 1e-15);
    right &= is_close(lns_cosine(3, 1, 50, 100), 2, 1e-15) && is_close(lns_cosine(1, 0, 1, 3), 0.75, 1e-15);
    check(right, "lns_cosine");
}

void test_update(void)
{
    test_steps_of(2);
    test_steps_of(34);
    test_steps_of(20000);
    test_cosine();
}
