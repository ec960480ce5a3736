/* The map of every channel, fused with pooling over tokens or pixels, its gradient, and the map of a few channels. */
#ifndef LNS_AFFINE_H
#define LNS_AFFINE_H
#include <stddef.h>
#include <stdint.h>

/* _f32 and _f64 keep and compute everything in that type. _bf16 and _f16 keep h, out, grad_out and grad_h as the bits of
 * halves, everything else as float; they compute in float and round once, to the nearest even, where they store.
 *
 * "last" has channels last, h: (batch, tokens, dim); "first" has them first, h: (batch, dim, tokens).
 * pool: (batch, tokens), how much each token counts in its sample's response: 1/count for the unmasked, 0 for padding.
 * scale, shift: (dim,); everything C-contiguous, non-overlapping; every size >= 1, threads >= 1.
 * Nothing fails; nothing is allocated; the bits do not depend on threads: each sum is made by one thread.
 *
 * out = scale * h + shift for every token;   pooled[b, j] = sum over t of pool[b, t] * (scale * h + shift)[b, t, j],
 * where tokens of zero weight are not looked at (padding may hold anything).  out: like h.  pooled: (batch, dim).
 * Reads h once. */
void lns_affine_last_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                         const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                          const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_f64(double *out, double *pooled, const double *h, const double *scale, const double *shift,
                         const double *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_f64(double *out, double *pooled, const double *h, const double *scale, const double *shift,
                          const double *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_bf16(uint16_t *out, float *pooled, const uint16_t *h, const float *scale, const float *shift,
                          const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_bf16(uint16_t *out, float *pooled, const uint16_t *h, const float *scale, const float *shift,
                           const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_f16(uint16_t *out, float *pooled, const uint16_t *h, const float *scale, const float *shift,
                         const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_f16(uint16_t *out, float *pooled, const uint16_t *h, const float *scale, const float *shift,
                          const float *pool, size_t batch, size_t tokens, size_t dim, int threads);

/* Gradients of the above. grad_out: like h, or NULL where nothing after the site needs it (the last loss site);
 * grad_pooled: (batch, dim).  With g = grad_out + pool * grad_pooled:
 * grad_h = scale * g;   grad_scale[j] = sum of g * h where g is not 0;   grad_shift[j] = sum of g.
 * scratch: 2 * batch * dim of the type of scale, the sums of each sample, added up in the order of the batch. */
void lns_affine_last_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                              const float *grad_pooled, const float *h, const float *scale, const float *pool,
                              float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                               const float *grad_pooled, const float *h, const float *scale, const float *pool,
                               float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_grad_f64(double *grad_h, double *grad_scale, double *grad_shift, const double *grad_out,
                              const double *grad_pooled, const double *h, const double *scale, const double *pool,
                              double *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_grad_f64(double *grad_h, double *grad_scale, double *grad_shift, const double *grad_out,
                               const double *grad_pooled, const double *h, const double *scale, const double *pool,
                               double *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_grad_bf16(uint16_t *grad_h, float *grad_scale, float *grad_shift, const uint16_t *grad_out,
                               const float *grad_pooled, const uint16_t *h, const float *scale, const float *pool,
                               float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_grad_bf16(uint16_t *grad_h, float *grad_scale, float *grad_shift, const uint16_t *grad_out,
                                const float *grad_pooled, const uint16_t *h, const float *scale, const float *pool,
                                float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_last_grad_f16(uint16_t *grad_h, float *grad_scale, float *grad_shift, const uint16_t *grad_out,
                              const float *grad_pooled, const uint16_t *h, const float *scale, const float *pool,
                              float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_grad_f16(uint16_t *grad_h, float *grad_scale, float *grad_shift, const uint16_t *grad_out,
                               const float *grad_pooled, const uint16_t *h, const float *scale, const float *pool,
                               float *scratch, size_t batch, size_t tokens, size_t dim, int threads);

/* In place, the channels in support only: h[o, support[k], i] = scale[k] * h[o, support[k], i] + shift[k].
 * h: (outer, dim, inner), inner is 1 where channels are last; support: (count,), 0 <= support[k] < dim, each once;
 * scale, shift: (count,).  O(outer * count * inner), whatever dim is. */
void lns_affine_sparse_f32(float *h, const int64_t *support, const float *scale, const float *shift, size_t outer,
                           size_t dim, size_t inner, size_t count, int threads);
void lns_affine_sparse_f64(double *h, const int64_t *support, const double *scale, const double *shift, size_t outer,
                           size_t dim, size_t inner, size_t count, int threads);
void lns_affine_sparse_bf16(uint16_t *h, const int64_t *support, const float *scale, const float *shift, size_t outer,
                            size_t dim, size_t inner, size_t count, int threads);
void lns_affine_sparse_f16(uint16_t *h, const int64_t *support, const float *scale, const float *shift, size_t outer,
                           size_t dim, size_t inner, size_t count, int threads);

#endif
