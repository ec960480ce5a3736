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

void test_affine(void)
{
    test_affine_pool();
    test_affine_where_no_gradient_flows();
}
