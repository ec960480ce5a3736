/* The product of two matrices, in the kernels' own threads: a BLAS has others, which keep the cores while they wait. */
#ifndef LNS_PRODUCT_H
#define LNS_PRODUCT_H
#include <stddef.h>

/* out[i, c] = sum over j of a[i, j] * b[j, c].
 * out: (n, columns).  a: (n, d).  b: (d, columns).  C-contiguous, non-overlapping, every size >= 1, threads >= 1.
 * scratch: threads * lns_product_scratch_f32(d) bytes, aligned for double; faster when aligned to 64.
 * The size is SIZE_MAX where it would overflow.
 * Summed in the type of the matrices, in the order of j. Never fails; allocates nothing; the bits do not depend on
 * threads. O(n d columns). */
size_t lns_product_scratch_f32(size_t d);
size_t lns_product_scratch_f64(size_t d);
void lns_product_f32(float *out, const float *a, const float *b, size_t n, size_t d, size_t columns, void *scratch,
                     int threads);
void lns_product_f64(double *out, const double *a, const double *b, size_t n, size_t d, size_t columns, void *scratch,
                     int threads);

#endif
