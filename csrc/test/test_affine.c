#include "check.h"
#include "lns_affine.h"

typedef struct {
    size_t batch, tokens, dim;
    int first, pooled_only;
} affine_case;

static size_t place(affine_case t, size_t b, size_t k, size_t j)
{
    return t.first ? (b * t.dim + j) * t.tokens + k : (b * t.tokens + k) * t.dim + j;
}

/* Maps and pools h, whose padding (weight zero) holds infinities, forward and backward. */
static int maps_as_a_loop_does(affine_case t)
{
    size_t count = t.batch * t.tokens * t.dim, rows = t.batch * t.dim;
    float *h = random_floats(count), *scale = random_floats(t.dim), *shift = random_floats(t.dim);
    float *pool = NEW(float, t.batch * t.tokens), *out = NEW(float, count), *pooled = NEW(float, rows);
    float *grad_out = random_floats(count), *grad_pooled = random_floats(rows), *scratch = NEW(float, 2 * rows);
    float *grad_h = NEW(float, count), *grad_scale = NEW(float, t.dim), *grad_shift = NEW(float, t.dim);
    int right = 1;
    grad_pooled[0] = 0;
    for (size_t b = 0; b < t.batch; b++)
        for (size_t k = 0; k < t.tokens; k++) {
            int padding = t.tokens > 1 && (b + k) % 3 == 0;
            pool[b * t.tokens + k] = padding ? 0 : (float)(1 + draw() / 2);
            for (size_t j = 0; padding && j < t.dim; j++) {
                h[place(t, b, k, j)] = k % 2 ? INFINITY : NAN;
                grad_out[place(t, b, k, j)] = 0;
            }
        }
    const float *from_out = t.pooled_only ? NULL : grad_out;
    (t.first ? lns_affine_first_f32 : lns_affine_last_f32)(out, pooled, h, scale, shift, pool, t.batch, t.tokens, t.dim,
                                                           THREADS);
    (t.first ? lns_affine_first_grad_f32 : lns_affine_last_grad_f32)(
        grad_h, grad_scale, grad_shift, from_out, grad_pooled, h, scale, pool, scratch, t.batch, t.tokens, t.dim,
        THREADS);
    for (size_t j = 0; j < t.dim; j++) {
        double slope_scale = 0, slope_shift = 0, w = (double)scale[j];
        for (size_t b = 0; b < t.batch; b++) {
            double response = 0;
            for (size_t k = 0; k < t.tokens; k++) {
                size_t at = place(t, b, k, j);
                double weight = (double)pool[b * t.tokens + k], value = w * (double)h[at] + (double)shift[j];
                double g = (from_out ? (double)grad_out[at] : 0) + weight * (double)grad_pooled[b * t.dim + j];
                if (weight != 0) {
                    right &= is_close((double)out[at], value, 1e-6);
                    response += weight * value;
                    slope_scale += g * (double)h[at];
                } else {
                    right &= !isfinite(out[at]);
                }
                slope_shift += g;
                right &= is_close((double)grad_h[at], w * g, 1e-6);
            }
            right &= is_close((double)pooled[b * t.dim + j], response, 1e-5);
        }
        right &= is_close((double)grad_scale[j], slope_scale, 1e-5);
        right &= is_close((double)grad_shift[j], slope_shift, 1e-5);
    }
    free(h); free(scale); free(shift); free(pool); free(out); free(pooled); free(grad_out); free(grad_pooled);
    free(scratch); free(grad_h); free(grad_scale); free(grad_shift);
    return right;
}

static void test_affine_pool(void)
{
    const size_t shapes[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 5, 16}, {2, 17, 33}, {4, 2, 129}};
    const char *names[2][2] = {{"lns_affine_last_f32, _grad_f32", "lns_affine_last_grad_f32: responses only"},
                               {"lns_affine_first_f32, _grad_f32", "lns_affine_first_grad_f32: responses only"}};
    for (int first = 0; first < 2; first++)
        for (int pooled_only = 0; pooled_only < 2; pooled_only++) {
            int right = 1;
            for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
                affine_case t = {shapes[k][0], shapes[k][1], shapes[k][2], first, pooled_only};
                right &= maps_as_a_loop_does(t);
            }
            check(right, names[first][pooled_only]);
        }
}

static void test_affine_where_no_gradient_flows(void)
{
    float h[] = {INFINITY, 2}, scale[] = {1}, pool[] = {0.5f, 0.5f}, none[] = {0};
    float grad_h[2], grad_scale[1], grad_shift[1], scratch[2];
    lns_affine_last_grad_f32(grad_h, grad_scale, grad_shift, NULL, none, h, scale, pool, scratch, 1, 2, 1, 1);
    int right = grad_scale[0] == 0 && grad_shift[0] == 0 && grad_h[0] == 0 && grad_h[1] == 0;
    lns_affine_first_grad_f32(grad_h, grad_scale, grad_shift, NULL, none, h, scale, pool, scratch, 1, 2, 1, 1);
    check(right && grad_scale[0] == 0 && grad_shift[0] == 0, "lns_affine_*_grad_f32: no gradient meets an infinity");
}

/* What the other types do with the same numbers, to the precision of halves; h holds numbers that all of them have. */
static void test_affine_types(void)
{
    enum { B = 2, T = 3, D = 4100, N = B * T * D };
    float *h = NEW(float, N), *scale = random_floats(D), *shift = random_floats(D), pool[B * T] = {0.5f, 0, 1, 1, 1, 1};
    float *out = NEW(float, N), *pooled = NEW(float, B * D), *grad = NEW(float, D), *ones = NEW(float, B * D);
    float *scratch = NEW(float, 2 * B * D), *shifts = NEW(float, D), *grad_h = NEW(float, N);
    uint16_t *bf16 = NEW(uint16_t, N), *bf16_out = NEW(uint16_t, N), *f16 = NEW(uint16_t, N), *f16_out = NEW(uint16_t, N);
    double *wide = NEW(double, N), *wide_out = NEW(double, N), *wide_scale = widened(scale, D);
    double *wide_shift = widened(shift, D), *wide_pool = widened(pool, B * T), *wide_pooled = NEW(double, B * D);
    for (size_t k = 0; k < N; k++) {
        uint32_t bits;
        h[k] = k % 2 ? 0.75f : -2;
        wide[k] = (double)h[k];
        memcpy(&bits, h + k, sizeof bits);
        bf16[k] = (uint16_t)(bits >> 16);
        f16[k] = k % 2 ? 0x3a00 : 0xc000;
    }
    for (size_t k = 0; k < B * D; k++) ones[k] = 1;
    for (int first = 0; first < 2; first++) {
        int right = 1;
        (first ? lns_affine_first_f32 : lns_affine_last_f32)(out, pooled, h, scale, shift, pool, B, T, D, 1);
        (first ? lns_affine_first_f64 : lns_affine_last_f64)(wide_out, wide_pooled, wide, wide_scale, wide_shift,
                                                             wide_pool, B, T, D, THREADS);
        for (size_t k = 0; k < N; k++) right &= is_close((double)out[k], wide_out[k], 1e-6);
        for (size_t k = 0; k < B * D; k++) right &= is_close((double)pooled[k], wide_pooled[k], 1e-6);
        check(right, "lns_affine_*_f64: as in float");
        float *again = NEW(float, B * D);
        (first ? lns_affine_first_bf16 : lns_affine_last_bf16)(bf16_out, again, bf16, scale, shift, pool, B, T, D, 1);
        right = !memcmp(again, pooled, B * D * sizeof *again);
        (first ? lns_affine_first_f16 : lns_affine_last_f16)(f16_out, again, f16, scale, shift, pool, B, T, D, 1);
        right &= !memcmp(again, pooled, B * D * sizeof *again);
        check(right, "lns_affine_*_bf16, _f16: pooled in float, bit for bit");
        for (size_t k = 0; k < N; k++) {
            uint32_t bits = (uint32_t)bf16_out[k] << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            right &= fabs((double)value - (double)out[k]) <= fabs((double)out[k]) / 256;
        }
        check(right, "lns_affine_*_bf16: out is rounded");
        (first ? lns_affine_first_grad_f32 : lns_affine_last_grad_f32)(grad_h, grad, shifts, NULL, ones, h, scale, pool,
                                                                       scratch, B, T, D, THREADS);
        (first ? lns_affine_first_grad_bf16 : lns_affine_last_grad_bf16)(bf16_out, again, shifts, NULL, ones, bf16,
                                                                         scale, pool, scratch, B, T, D, THREADS);
        right = !memcmp(again, grad, D * sizeof *again);
        (first ? lns_affine_first_grad_f16 : lns_affine_last_grad_f16)(f16_out, again, shifts, NULL, ones, f16, scale,
                                                                       pool, scratch, B, T, D, THREADS);
        check(right && !memcmp(again, grad, D * sizeof *again), "lns_affine_*_grad_bf16, _f16: sums in float");
        free(again);
    }
    free(h); free(scale); free(shift); free(out); free(pooled); free(grad); free(ones); free(scratch); free(shifts);
    free(grad_h); free(bf16); free(bf16_out); free(f16); free(f16_out); free(wide); free(wide_out); free(wide_scale);
    free(wide_shift); free(wide_pool); free(wide_pooled);
}

static void test_affine_sparse(void)
{
    const int64_t support[] = {1, 4};
    const float scale[] = {2, -1}, shift[] = {0.5f, 3};
    const double wide_scale[] = {2, -1}, wide_shift[] = {0.5, 3};
    for (size_t inner = 1; inner < 20; inner += 6) {
        size_t count = 3 * 5 * inner;
        float *h = NEW(float, count);
        double *wide = NEW(double, count);
        uint16_t *bf16 = NEW(uint16_t, count), *f16 = NEW(uint16_t, count);
        for (size_t k = 0; k < count; k++) {
            h[k] = 2;
            wide[k] = 2;
            bf16[k] = 0x4000;
            f16[k] = 0x4000;
        }
        lns_affine_sparse_f32(h, support, scale, shift, 3, 5, inner, 2, THREADS);
        lns_affine_sparse_f64(wide, support, wide_scale, wide_shift, 3, 5, inner, 2, THREADS);
        lns_affine_sparse_bf16(bf16, support, scale, shift, 3, 5, inner, 2, THREADS);
        lns_affine_sparse_f16(f16, support, scale, shift, 3, 5, inner, 2, THREADS);
        int right = 1;
        for (size_t k = 0; k < count; k++) {
            size_t j = k / inner % 5;
            double expected = j == 1 ? 4.5 : j == 4 ? 1 : 2;
            right &= (double)h[k] == expected && wide[k] == expected;
            right &= bf16[k] == (j == 1 ? 0x4090 : j == 4 ? 0x3f80 : 0x4000);
            right &= f16[k] == (j == 1 ? 0x4480 : j == 4 ? 0x3c00 : 0x4000);
        }
        check(right, "lns_affine_sparse_*: the support and nothing else");
        free(h); free(wide); free(bf16); free(f16);
    }
}

void test_affine(void)
{
    test_affine_pool();
    test_affine_types();
    test_affine_sparse();
    test_affine_where_no_gradient_flows();
}
