/* The map of every channel, fused with pooling over tokens or pixels, and its gradient. */
#ifndef LNS_AFFINE_H
#define LNS_AFFINE_H
#include <stddef.h>

/* "last" has channels last, h: (batch, tokens, dim); "first" has them first, h: (batch, dim, tokens).
 * pool: (batch, tokens), how much each token counts in its sample's response: 1/count for the unmasked, 0 for padding.
 * scale, shift: (dim,); everything C-contiguous, non-overlapping; every size >= 1, threads >= 1.
 * One thread owns a whole sample; nothing fails; nothing is allocated; the bits do not depend on threads.
 *
 * out = scale * h + shift for every token;   pooled[b, j] = sum over t of pool[b, t] * out[b, t, j], where tokens of
 * zero weight are not looked at (padding may hold anything).  out: like h.  pooled: (batch, dim).  Reads h once. */
void lns_affine_last_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                         const float *pool, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_f32(float *out, float *pooled, const float *h, const float *scale, const float *shift,
                          const float *pool, size_t batch, size_t tokens, size_t dim, int threads);

/* Gradients of the above. grad_out: like h, or NULL where nothing after the site needs it (the last loss site);
 * grad_pooled: (batch, dim).  With g = grad_out + pool * grad_pooled:
 * grad_h = scale * g;   grad_scale[j] = sum of g * h where g is not 0;   grad_shift[j] = sum of g.
 * scratch: 2 * batch * dim floats, the sums of each sample, added up in the order of the batch. */
void lns_affine_last_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                              const float *grad_pooled, const float *h, const float *scale, const float *pool,
                              float *scratch, size_t batch, size_t tokens, size_t dim, int threads);
void lns_affine_first_grad_f32(float *grad_h, float *grad_scale, float *grad_shift, const float *grad_out,
                               const float *grad_pooled, const float *h, const float *scale, const float *pool,
                               float *scratch, size_t batch, size_t tokens, size_t dim, int threads);

#endif
