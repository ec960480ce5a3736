#include "check.h"
#include "lns_product.h"

/* To the last bit: the sums are in the order of j. */
static int multiplies_in_order(size_t n, size_t d, size_t columns, int threads)
{
    float *a = random_floats(n * d), *b = random_floats(d * columns), *out = NEW(float, n * columns);
    double *wide_a = widened(a, n * d), *wide_b = widened(b, d * columns), *wide_out = NEW(double, n * columns);
    void *scratch = allocate((size_t)threads * lns_product_scratch_f32(d));
    void *wide_scratch = allocate((size_t)threads * lns_product_scratch_f64(d));
    lns_product_f32(out, a, b, n, d, columns, scratch, threads);
    lns_product_f64(wide_out, wide_a, wide_b, n, d, columns, wide_scratch, threads);
    int right = 1;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < columns; c++) {
            float sum = 0;
            double wide_sum = 0;
            for (size_t j = 0; j < d; j++) {
                sum += a[i * d + j] * b[j * columns + c];
                wide_sum += wide_a[i * d + j] * wide_b[j * columns + c];
            }
            right &= sum == out[i * columns + c] && wide_sum == wide_out[i * columns + c];
        }
    free(a); free(b); free(out); free(wide_a); free(wide_b); free(wide_out); free(scratch); free(wide_scratch);
    return right;
}

void test_product(void)
{
    const size_t rows[] = {1, 3, 4, 5, 64, 67, 130}, inner[] = {1, 2, 9}, columns[] = {1, 15, 16, 17, 40};
    int right = 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof inner / sizeof *inner; j++)
            for (size_t k = 0; k < sizeof columns / sizeof *columns; k++)
                for (int threads = 1; threads <= THREADS; threads++)
                    right &= multiplies_in_order(rows[i], inner[j], columns[k], threads);
    check(right, "lns_product_f32, _f64: every sum in its order");
    check(lns_product_scratch_f32(3) == 3 * 16 * sizeof(float) && lns_product_scratch_f64(SIZE_MAX / 100) == SIZE_MAX
          && lns_product_scratch_f32(SIZE_MAX / 50) == SIZE_MAX, "lns_product_scratch: no overflow");
}
