#include "check.h"
#include "lns_optim.h"
#include "lns_prox.h"

/* ---- lns_prox ---- */

static double penalty_of(const double *u, const int64_t *offsets, size_t groups, double l1, double group, double ridge)
{
    double total = 0;
    for (size_t k = 0; k < groups; k++) {
        double square = 0;
        for (int64_t j = offsets[k]; j < offsets[k + 1]; j++) {
            total += l1 * fabs(u[j]) + ridge * u[j] * u[j];
            square += u[j] * u[j];
        }
        total += group * sqrt((double)(offsets[k + 1] - offsets[k])) * sqrt(square);
    }
    return total;
}

static void test_prox(void)
{
    enum { GROUPS = 4 };
    const int64_t ends[] = {0, 1, 1, 6, 40};                  /* one of them empty */
    int64_t *offsets = NEW(int64_t, GROUPS + 1);
    memcpy(offsets, ends, sizeof ends);
    size_t count = (size_t)offsets[GROUPS];
    float *v = random_floats(count), *out = NEW(float, count);
    double *u = NEW(double, count), *near = NEW(double, count);
    int value = 1, best = 1, in_place = 1, removed = 1, identity = 1;
    for (int k = 0; k < 32; k++) {
        double l1 = k & 1 ? 0.1 : 0, group = k & 2 ? 0.2 : 0, ridge = k & 4 ? 0.3 : 0, step = k & 8 ? 1.5 : 0.5;
        float center = k & 16 ? 1.0f : 0.0f;
        for (size_t j = 0; j < count; j++) u[j] = (double)v[j] - (double)center;
        value &= is_close(lns_penalty_f32(v, center, offsets, GROUPS, l1, group, ridge),
                          penalty_of(u, offsets, GROUPS, l1, group, ridge), 1e-12);
        lns_prox_f32(out, v, center, offsets, GROUPS, l1, group, ridge, step);
        double least = INFINITY;
        for (int trial = 0; trial < 200; trial++) {           /* trial 0 is the prox itself */
            double size = trial ? pow(10, -(trial % 4)) : 0, distance = 0;
            for (size_t j = 0; j < count; j++) {
                near[j] = (double)out[j] - (double)center + size * draw();
                distance += (near[j] - u[j]) * (near[j] - u[j]);
            }
            double objective = penalty_of(near, offsets, GROUPS, l1, group, ridge) + distance / (2 * step);
            if (trial) best &= objective >= least - 1e-5;
            else least = objective;
        }
        memcpy(near, v, count * sizeof *v);                   /* bytes of v, borrowed room */
        lns_prox_f32(v, v, center, offsets, GROUPS, l1, group, ridge, step);
        in_place &= !memcmp(v, out, count * sizeof *v);
        memcpy(v, near, count * sizeof *v);
        lns_prox_f32(out, v, center, offsets, GROUPS, l1, group, ridge, 0);
        identity &= !memcmp(v, out, count * sizeof *v);
        lns_prox_f32(out, v, center, offsets, GROUPS, k & 1 ? 1e9 : 0, k & 1 ? 0 : 1e9, ridge, step);
        for (size_t j = 0; j < count; j++) removed &= out[j] == center && !signbit(out[j]);
    }
    check(value, "lns_penalty_f32");
    check(best, "lns_prox_f32: no better point nearby");
    check(in_place, "lns_prox_f32: in place");
    check(identity, "lns_prox_f32: a step of zero");
    check(removed, "lns_prox_f32: huge strengths leave the center, exactly");
    free(offsets); free(v); free(out); free(u); free(near);
}

/* ---- lns_optim ---- */

static void test_optim_of(size_t count)
{
    float *start = random_floats(count), *gradient = random_floats(count);
    float *x = NEW(float, count), *out = NEW(float, count);
    float *velocity = random_floats(count), *first = random_floats(count), *second = random_floats(count);
    int step = 1, sgd = 1, adam = 1, movement;
    lns_gradient_step_f32(out, start, gradient, 0.25, count);
    memcpy(x, start, count * sizeof *x);
    lns_gradient_step_f32(x, x, gradient, 0.25, count);
    step &= !memcmp(x, out, count * sizeof *x);
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, NULL, gradient, 0.25, 0, count);
    sgd &= !memcmp(x, out, count * sizeof *x);
    double slope, square, expected_slope = 0, expected_square = 0;
    lns_movement_f32(&slope, &square, out, start, gradient, count);
    for (size_t j = 0; j < count; j++) {
        double move = (double)out[j] - (double)start[j];
        expected_slope += move * (double)gradient[j];
        expected_square += move * move;
        step &= is_close(move, -0.25 * (double)gradient[j], 1e-6);
    }
    movement = is_close(slope, expected_slope, 1e-12) && is_close(square, expected_square, 1e-12);
    memcpy(out, velocity, count * sizeof *out);
    memcpy(x, start, count * sizeof *x);
    lns_sgd_f32(x, velocity, gradient, 0.25, 0.5, count);
    for (size_t j = 0; j < count; j++) {
        double speed = 0.5 * (double)out[j] + (double)gradient[j];
        sgd &= is_close((double)velocity[j], speed, 1e-6);
        sgd &= is_close((double)x[j], (double)start[j] - 0.25 * speed, 1e-6);
    }
    for (size_t j = 0; j < count; j++) {
        first[j] = second[j] = 0;
        x[j] = start[j];
        gradient[j] += gradient[j] > 0 ? 0.1f : -0.1f;
    }
    for (size_t k = 1; k <= 3; k++) lns_adam_f32(x, first, second, gradient, 0.01, 0.9, 0.99, 1e-8, k, count);
    for (size_t j = 0; j < count; j++)                        /* a steady gradient: three whole steps */
        adam &= is_close((double)x[j], (double)start[j] - 0.03 * (gradient[j] > 0 ? 1 : -1), 1e-5);
    check(step, "lns_gradient_step_f32");
    check(sgd, "lns_sgd_f32");
    check(adam, "lns_adam_f32");
    check(movement, "lns_movement_f32");
    free(start); free(gradient); free(x); free(out); free(velocity); free(first); free(second);
}

static void test_cosine(void)
{
    int right = lns_cosine(0.1, 0.01, 0, 1) == 0.1 && is_close(lns_cosine(0.1, 0.01, 7, 7), 0.01, 1e-15);
    right &= is_close(lns_cosine(3, 1, 50, 100), 2, 1e-15) && is_close(lns_cosine(1, 0, 1, 3), 0.75, 1e-15);
    check(right, "lns_cosine");
}

void test_optim(void)
{
    test_prox();
    test_optim_of(1);
    test_optim_of(33);
    test_cosine();
}
