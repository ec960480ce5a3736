/* Every kernel without Python: results against simple scalar code, on heap buffers of exactly the size that the headers
 * promise to be enough, so that AddressSanitizer and valgrind see any access beyond them. See `make kernels`. */
#include "check.h"

#include <stdio.h>

static int checks, failures;

void check(int passed, const char *what)
{
    checks++;
    failures += !passed;
    printf("%s  %s\n", passed ? "ok  " : "FAIL", what);
}

void *allocate(size_t bytes)
{
    void *memory = malloc(bytes);
    if (memory) return memory;
    fputs("out of memory\n", stderr);
    exit(2);
}

int is_close(double got, double expected, double tolerance)
{
    return fabs(got - expected) <= tolerance * (1 + fabs(expected));
}

double draw(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 4503599627370496.0 - 1;
}

float *random_floats(size_t count)
{
    float *x = NEW(float, count);
    for (size_t k = 0; k < count; k++) x[k] = (float)draw();
    return x;
}

float *tied_floats(size_t count)
{
    float *x = NEW(float, count);
    for (size_t k = 0; k < count; k++) x[k] = (float)floor(3 * draw()) * (draw() < 0 ? -0.5f : 0.5f);
    return x;
}

double *widened(const float *x, size_t count)
{
    double *wide = NEW(double, count);
    for (size_t k = 0; k < count; k++) wide[k] = (double)x[k];
    return wide;
}

void stable_order(int32_t *order, const float *x, size_t n, size_t columns, size_t c)
{   /* Insertion sort. */
    for (size_t i = 0; i < n; i++) {
        size_t at = i;
        for (; at > 0 && x[(size_t)order[at - 1] * columns + c] > x[i * columns + c]; at--) order[at] = order[at - 1];
        order[at] = (int32_t)i;
    }
}

static samples_t new_samples(size_t n, size_t m, size_t columns, int tied)
{
    samples_t s = {NULL, NULL, NULL, NULL, n, m, columns};
    s.x = tied ? tied_floats(n * columns) : random_floats(n * columns);
    s.y = tied ? tied_floats(m * columns) : random_floats(m * columns);
    for (size_t k = 0; k < n * columns && !tied; k++) s.x[k] += 0.25f;
    s.wide_x = widened(s.x, n * columns);
    s.wide_y = widened(s.y, m * columns);
    return s;
}

static void free_samples(samples_t s)
{
    free(s.x); free(s.y); free(s.wide_x); free(s.wide_y);
}

int holds_for_samples(int (*passes)(samples_t s, int threads), int tied)
{
    const size_t counts[][2] = {{1, 1}, {1, 5}, {5, 1}, {3, 3}, {4, 6}, {8, 8}, {16, 17}, {32, 32}, {33, 20}};
    const size_t columns[] = {1, 31, 33, 64, 65, 130};
    int right = 1;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
            samples_t s = new_samples(counts[i][0], counts[i][1], columns[k], tied);
            for (int threads = 1; threads <= THREADS; threads += THREADS - 1) right &= passes(s, threads);
            free_samples(s);
        }
    return right;
}

int main(void)
{
    test_tile();
    test_sort();
    test_wasserstein();
    test_null();
    test_rank();
    test_transport();
    test_affine();
    test_prox();
    test_update();
    test_product();
    test_quadratic();
    test_ridge();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
