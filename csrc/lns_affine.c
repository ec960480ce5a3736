#include "lns_affine.h"

#include <string.h>

#include "lns_port.h"

/* A plain loop, no intrinsics: LNS_CLONES makes the compiler emit the AVX2 and AVX-512 copies. */
LNS_CLONES static void map_row(float *restrict out, const float *restrict h, const float *restrict scale,
                               const float *restrict shift, size_t dim)
{
    for (size_t j = 0; j < dim; j++) out[j] = scale[j] * h[j] + shift[j];
}

LNS_CLONES static void add_scaled(float *restrict sum, const float *restrict x, float factor, size_t count)
{
    for (size_t j = 0; j < count; j++) sum[j] += factor * x[j];
}

void lns_affine_last_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                         const float *pool, size_t batch, size_t tokens, size_t dim, int threads)
{
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t b = 0; b < (ptrdiff_t)batch; b++) {
        float *response = pooled + (size_t)b * dim;
        memset(response, 0, dim * sizeof *response);
        for (size_t t = 0; t < tokens; t++) {
            size_t row = (size_t)b * tokens + t;
            map_row(out + row * dim, h + row * dim, scale, shift, dim);
            if (pool[row] != 0) add_scaled(response, out + row * dim, pool[row], dim);
        }
    }
}

/* grad_h = scale * g and the sums over tokens of g * h and g, with g = grad_out + weight * grad_pooled, for one token. */
LNS_CLONES static void grad_row(float *restrict grad_h, float *restrict sum_scale, float *restrict sum_shift,
                                const float *restrict grad_out, const float *restrict grad_pooled,
                                const float *restrict h, const float *restrict scale, float weight, size_t dim)
{
    for (size_t j = 0; j < dim; j++) {
        float g = grad_out[j] + weight * grad_pooled[j];
        float product = g * h[j];
        grad_h[j] = scale[j] * g;
        sum_scale[j] += g != 0 ? product : 0; /* padding may hold an infinity, which no gradient should meet */
        sum_shift[j] += g;
    }
}

/* The same where no gradient comes from later layers: padding then has none at all. */
LNS_CLONES static void grad_row_pooled(float *restrict grad_h, float *restrict sum_scale, float *restrict sum_shift,
                                       const float *restrict grad_pooled, const float *restrict h,
                                       const float *restrict scale, float weight, size_t dim)
{
    for (size_t j = 0; j < dim; j++) {
        float g = weight * grad_pooled[j];
        float product = g * h[j];
        grad_h[j] = scale[j] * g;
        sum_scale[j] += g != 0 ? product : 0;
        sum_shift[j] += g;
    }
}

/* Samples were summed apart; add them up in order, so that threads cannot change the bits. */
static void add_samples(float *restrict total, const float *restrict rows, size_t batch, size_t dim)
{
    memset(total, 0, dim * sizeof *total);
    for (size_t b = 0; b < batch; b++) add_scaled(total, rows + b * dim, 1, dim);
}

void lns_affine_last_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                              const float *grad_pooled, const float *h, const float *scale, const float *pool,
                              float *scratch, size_t batch, size_t tokens, size_t dim, int threads)
{
    float *scale_rows = scratch, *shift_rows = scratch + batch * dim;
    memset(scratch, 0, 2 * batch * dim * sizeof *scratch);
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t b = 0; b < (ptrdiff_t)batch; b++) {
        size_t own = (size_t)b * dim;
        for (size_t t = 0; t < tokens; t++) {
            size_t row = (size_t)b * tokens + t, at = row * dim;
            if (grad_out)
                grad_row(grad_h + at, scale_rows + own, shift_rows + own, grad_out + at, grad_pooled + own, h + at,
                         scale, pool[row], dim);
            else if (pool[row] != 0)
                grad_row_pooled(grad_h + at, scale_rows + own, shift_rows + own, grad_pooled + own, h + at, scale,
                                pool[row], dim);
            else memset(grad_h + at, 0, dim * sizeof *grad_h);
        }
    }
    add_samples(grad_scale, scale_rows, batch, dim);
    add_samples(grad_shift, shift_rows, batch, dim);
}

/* One channel of one sample, its tokens side by side. */
LNS_CLONES static float map_channel(float *restrict out, const float *restrict h, const float *restrict pool,
                                    float scale, float shift, size_t tokens)
{
    float sum = 0;
    for (size_t t = 0; t < tokens; t++) out[t] = scale * h[t] + shift;
    LNS_SIMD_SUM(sum)
    for (size_t t = 0; t < tokens; t++) sum += pool[t] != 0 ? pool[t] * out[t] : 0;
    return sum;
}

void lns_affine_first_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                          const float *pool, size_t batch, size_t tokens, size_t dim, int threads)
{
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t b = 0; b < (ptrdiff_t)batch; b++)
        for (size_t j = 0; j < dim; j++) {
            size_t row = (size_t)b * dim + j;
            pooled[row] = map_channel(out + row * tokens, h + row * tokens, pool + (size_t)b * tokens, scale[j],
                                      shift[j], tokens);
        }
}

LNS_CLONES static void grad_channel(float *restrict grad_h, float *sum_scale, float *sum_shift,
                                    const float *restrict grad_out, const float *restrict h,
                                    const float *restrict pool, float grad_pooled, float scale, size_t tokens)
{
    float total_scale = 0, total_shift = 0;
    for (size_t t = 0; t < tokens; t++)
        grad_h[t] = (grad_out ? grad_out[t] : 0) + pool[t] * grad_pooled;
    LNS_SIMD_SUM(total_scale, total_shift)
    for (size_t t = 0; t < tokens; t++) {
        total_scale += grad_h[t] != 0 ? grad_h[t] * h[t] : 0;
        total_shift += grad_h[t];
        grad_h[t] *= scale;
    }
    *sum_scale = total_scale;
    *sum_shift = total_shift;
}

void lns_affine_first_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                               const float *grad_pooled, const float *h, const float *scale, const float *pool,
                               float *scratch, size_t batch, size_t tokens, size_t dim, int threads)
{
    float *scale_rows = scratch, *shift_rows = scratch + batch * dim;
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t b = 0; b < (ptrdiff_t)batch; b++)
        for (size_t j = 0; j < dim; j++) {
            size_t row = (size_t)b * dim + j, at = row * tokens;
            grad_channel(grad_h + at, scale_rows + row, shift_rows + row, grad_out ? grad_out + at : NULL, h + at,
                         pool + (size_t)b * tokens, grad_pooled[row], scale[j], tokens);
        }
    add_samples(grad_scale, scale_rows, batch, dim);
    add_samples(grad_shift, shift_rows, batch, dim);
}
