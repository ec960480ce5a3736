/* The map and its gradient for one storage type, included by lns_affine.c once for each: STORE is what activations are
 * kept in, LOAD and SAVE turn it into REAL and back, REAL is what everything is computed in, NAME(f) the symbol of f. */

/* No gradient from later layers, for so many channels or tokens at a time. */
static const STORE NAME(none)[BLOCK] = {0};

/* ---- channels last ---- */

LNS_CLONES static void NAME(map_row)(STORE *restrict out, REAL *restrict sum, const STORE *restrict h,
                                     const REAL *restrict scale, const REAL *restrict shift, REAL weight, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        REAL mapped = scale[j] * LOAD(h[j]) + shift[j];
        out[j] = SAVE(mapped);
        sum[j] += KEEP(weight != 0, weight * mapped);         /* padding may hold anything */
    }
}

void NAME(lns_affine_last)(STORE *out, REAL *pooled, const STORE *h, const REAL *scale, const REAL *shift,
                           const REAL *pool, size_t batch, size_t tokens, size_t dim, int threads)
{
    size_t blocks = (dim + BLOCK - 1) / BLOCK;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)(batch * blocks); k++) {
        size_t b = (size_t)k / blocks, j = (size_t)k % blocks * BLOCK, count = dim - j < BLOCK ? dim - j : BLOCK;
        REAL *sum = pooled + b * dim + j;
        memset(sum, 0, count * sizeof *sum);
        for (size_t row = b * tokens; row < (b + 1) * tokens; row++)
            NAME(map_row)(out + row * dim + j, sum, h + row * dim + j, scale + j, shift + j, pool[row], count);
    }
}

/* grad_h = scale * g and the sums over tokens of g * h and g, with g = grad_out + weight * grad_pooled, for one token. */
LNS_CLONES static void NAME(grad_row)(STORE *restrict grad_h, REAL *restrict sum_scale, REAL *restrict sum_shift,
                                      const STORE *restrict grad_out, const REAL *restrict grad_pooled,
                                      const STORE *restrict h, const REAL *restrict scale, REAL weight, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        REAL g = LOAD(grad_out[j]) + weight * grad_pooled[j];
        grad_h[j] = SAVE(scale[j] * g);
        sum_scale[j] += KEEP(g != 0, g * LOAD(h[j]));         /* an infinity in padding should meet no gradient */
        sum_shift[j] += g;
    }
}

/* Samples were summed apart; add them up in order, so that threads cannot change the bits. */
LNS_CLONES static void NAME(add_row)(REAL *restrict total, const REAL *restrict row, size_t dim)
{
    for (size_t j = 0; j < dim; j++) total[j] += row[j];
}

static void NAME(add_samples)(REAL *restrict total, const REAL *restrict rows, size_t batch, size_t dim)
{
    memset(total, 0, dim * sizeof *total);
    for (size_t b = 0; b < batch; b++) NAME(add_row)(total, rows + b * dim, dim);
}

void NAME(lns_affine_last_grad)(STORE *grad_h, REAL *grad_scale, REAL *grad_shift, const STORE *grad_out,
                                const REAL *grad_pooled, const STORE *h, const REAL *scale, const REAL *pool,
                                REAL *scratch, size_t batch, size_t tokens, size_t dim, int threads)
{
    size_t blocks = (dim + BLOCK - 1) / BLOCK;
    ptrdiff_t k;
    LNS_PARALLEL_FOR(threads)
    for (k = 0; k < (ptrdiff_t)(batch * blocks); k++) {
        size_t b = (size_t)k / blocks, j = (size_t)k % blocks * BLOCK, count = dim - j < BLOCK ? dim - j : BLOCK;
        REAL *sum_scale = scratch + b * dim + j, *sum_shift = sum_scale + batch * dim;
        memset(sum_scale, 0, count * sizeof *sum_scale);
        memset(sum_shift, 0, count * sizeof *sum_shift);
        for (size_t row = b * tokens; row < (b + 1) * tokens; row++)
            NAME(grad_row)(grad_h + row * dim + j, sum_scale, sum_shift,
                           grad_out ? grad_out + row * dim + j : NAME(none), grad_pooled + b * dim + j,
                           h + row * dim + j, scale + j, pool[row], count);
    }
    NAME(add_samples)(grad_scale, scratch, batch, dim);
    NAME(add_samples)(grad_shift, scratch + batch * dim, batch, dim);
}

/* ---- channels first ---- */

/* One channel of one sample, its tokens side by side; returns their weighted sum. */
LNS_CLONES static REAL NAME(map_channel)(STORE *restrict out, const STORE *restrict h, const REAL *restrict pool,
                                         REAL scale, REAL shift, size_t tokens)
{
    REAL sum = 0;
    LNS_SIMD_SUM(sum)
    for (size_t t = 0; t < tokens; t++) {
        REAL mapped = scale * LOAD(h[t]) + shift;
        out[t] = SAVE(mapped);
        sum += KEEP(pool[t] != 0, pool[t] * mapped);
    }
    return sum;
}

void NAME(lns_affine_first)(STORE *out, REAL *pooled, const STORE *h, const REAL *scale, const REAL *shift,
                            const REAL *pool, size_t batch, size_t tokens, size_t dim, int threads)
{
    ptrdiff_t row;
    LNS_PARALLEL_FOR(threads)
    for (row = 0; row < (ptrdiff_t)(batch * dim); row++) {
        size_t b = (size_t)row / dim, j = (size_t)row % dim, at = (size_t)row * tokens;
        pooled[row] = NAME(map_channel)(out + at, h + at, pool + b * tokens, scale[j], shift[j], tokens);
    }
}

LNS_CLONES static void NAME(grad_channel)(STORE *restrict grad_h, REAL *restrict sum_scale, REAL *restrict sum_shift,
                                          const STORE *restrict grad_out, REAL grad_pooled, const STORE *restrict h,
                                          REAL scale, const REAL *restrict pool, size_t tokens)
{
    REAL total_scale = 0, total_shift = 0;
    LNS_SIMD_SUM(total_scale, total_shift)
    for (size_t t = 0; t < tokens; t++) {
        REAL g = LOAD(grad_out[t]) + pool[t] * grad_pooled;
        grad_h[t] = SAVE(scale * g);
        total_scale += KEEP(g != 0, g * LOAD(h[t]));
        total_shift += g;
    }
    *sum_scale += total_scale;
    *sum_shift += total_shift;
}

void NAME(lns_affine_first_grad)(STORE *grad_h, REAL *grad_scale, REAL *grad_shift, const STORE *grad_out,
                                 const REAL *grad_pooled, const STORE *h, const REAL *scale, const REAL *pool,
                                 REAL *scratch, size_t batch, size_t tokens, size_t dim, int threads)
{
    REAL *scale_rows = scratch, *shift_rows = scratch + batch * dim;
    ptrdiff_t row;
    LNS_PARALLEL_FOR(threads)
    for (row = 0; row < (ptrdiff_t)(batch * dim); row++) {
        size_t b = (size_t)row / dim, j = (size_t)row % dim;
        scale_rows[row] = shift_rows[row] = 0;
        for (size_t t = 0; t < tokens; t += BLOCK) {
            size_t at = (size_t)row * tokens + t, count = tokens - t < BLOCK ? tokens - t : BLOCK;
            NAME(grad_channel)(grad_h + at, scale_rows + row, shift_rows + row, grad_out ? grad_out + at : NAME(none),
                               grad_pooled[row], h + at, scale[j], pool + b * tokens + t, count);
        }
    }
    NAME(add_samples)(grad_scale, scale_rows, batch, dim);
    NAME(add_samples)(grad_shift, shift_rows, batch, dim);
}

/* ---- some channels only ---- */

void NAME(lns_affine_sparse)(STORE *h, const int64_t *support, const REAL *scale, const REAL *shift, size_t outer,
                             size_t dim, size_t inner, size_t count, int threads)
{
    ptrdiff_t o;
    LNS_PARALLEL_FOR(threads)
    for (o = 0; o < (ptrdiff_t)outer; o++)
        for (size_t k = 0; k < count; k++) {
            STORE *channel = h + ((size_t)o * dim + (size_t)support[k]) * inner;
            for (size_t t = 0; t < inner; t++) channel[t] = SAVE(scale[k] * LOAD(channel[t]) + shift[k]);
        }
}
