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

int main(void)
{
    test_transport();
    test_null();
    test_samples();
    test_product();
    test_affine();
    test_optim();
    test_quadratic();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
