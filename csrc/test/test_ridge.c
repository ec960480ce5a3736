#include "check.h"
#include "lns_ridge.h"

void test_ridge(void)
{
    enum { MANY = 9000, N = 3 };
    float *x = random_floats(2 * MANY), *gradient = NEW(float, 2 * MANY), *slopes = random_floats(N * MANY);
    double *form = widened(x, MANY), *mean = widened(x + MANY, MANY);
    double *parts = NEW(double, 3 * lns_ridge_blocks(2 * MANY)), sums[3], square = 0, value = 0;
    for (size_t j = 0; j < MANY; j++) {
        double u = (double)x[j] - 1, b = (double)x[MANY + j];
        value += form[j] * u * u + 2 * mean[j] * u * b + form[j] * b * b;
        square += form[j] * mean[j];
    }
    check(is_close(lns_ridge(gradient, x, form, mean, form, 0.5, MANY, parts, THREADS), value / 2, 1e-9), "lns_ridge");
    check(is_close(lns_dot(form, mean, MANY, parts, THREADS), square, 1e-9), "lns_dot");
    lns_move_sums(sums, x, gradient, x, gradient, 2 * MANY, parts, THREADS);
    check(is_close(sums[0], sums[2], 1e-12) && is_close(sums[0], sums[1], 1e-12) && sums[0] > 0, "lns_move_sums");
    double most = 0;
    for (size_t j = 0; j < 2 * MANY; j++) most = fmax(most, fabs((double)x[j]));
    check((double)lns_largest(x, 2 * MANY, parts, THREADS) == most, "lns_largest");
    float *before = NEW(float, N * MANY);
    memcpy(before, slopes, N * MANY * sizeof *before);
    lns_scale_columns(slopes, form, N, MANY, THREADS);
    int right = 1;
    for (size_t j = 0; j < N * MANY; j++) right &= slopes[j] == before[j] * (float)form[j % MANY];
    check(right, "lns_scale_columns");
    free(x); free(gradient); free(slopes); free(form); free(mean); free(parts); free(before);
}
