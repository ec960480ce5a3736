/* Included by lns_product.c once per precision; not a header of its own. */

/* ROWS rows of a by WIDTH columns of b. Rows apart by name: as an array of arrays GCC keeps the sums in memory, and is
 * five times slower. */
LNS_CLONES static void NAME(patch)(REAL *restrict out, const REAL *restrict a, const REAL *restrict b, size_t d,
                                   size_t columns)
{
    REAL sum0[WIDTH] = {0}, sum1[WIDTH] = {0}, sum2[WIDTH] = {0}, sum3[WIDTH] = {0};
    for (size_t j = 0; j < d; j++) {
        const REAL *row = b + j * columns;
        REAL a0 = a[j], a1 = a[d + j], a2 = a[2 * d + j], a3 = a[3 * d + j];
        for (size_t l = 0; l < WIDTH; l++) {
            sum0[l] += a0 * row[l];
            sum1[l] += a1 * row[l];
            sum2[l] += a2 * row[l];
            sum3[l] += a3 * row[l];
        }
    }
    memcpy(out, sum0, sizeof sum0);
    memcpy(out + columns, sum1, sizeof sum1);
    memcpy(out + 2 * columns, sum2, sizeof sum2);
    memcpy(out + 3 * columns, sum3, sizeof sum3);
}

/* What is left at the edges: fewer rows, or fewer columns. */
LNS_CLONES static void NAME(edge)(REAL *restrict out, const REAL *restrict a, const REAL *restrict b, size_t rows,
                                  size_t d, size_t columns, size_t width)
{
    for (size_t i = 0; i < rows; i++) {
        REAL sum[WIDTH] = {0};
        for (size_t j = 0; j < d; j++)
            for (size_t l = 0; l < width; l++) sum[l] += a[i * d + j] * b[j * columns + l];
        memcpy(out + i * columns, sum, width * sizeof *sum);
    }
}

void NAME(lns_product)(REAL *out, const REAL *a, const REAL *b, size_t n, size_t d, size_t columns, int threads)
{
    ptrdiff_t blocks = (ptrdiff_t)((n + BLOCK - 1) / BLOCK);
    LNS_PARALLEL_FOR(threads)
    for (ptrdiff_t t = 0; t < blocks; t++) {
        size_t first = (size_t)t * BLOCK, end = n - first < BLOCK ? n : first + BLOCK;
        for (size_t c = 0; c < columns; c += WIDTH) {         /* these columns of b stay in the cache for the block */
            size_t width = columns - c < WIDTH ? columns - c : WIDTH;
            for (size_t i = first; i < end; i += ROWS) {
                REAL *to = out + i * columns + c;
                if (end - i >= ROWS && width == WIDTH) NAME(patch)(to, a + i * d, b + c, d, columns);
                else NAME(edge)(to, a + i * d, b + c, end - i < ROWS ? end - i : ROWS, d, columns, width);
            }
        }
    }
}
