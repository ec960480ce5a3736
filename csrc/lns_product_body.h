/* Included by lns_product.c once per precision; not a header of its own. */

size_t NAME(lns_product_scratch)(size_t d)
{
    return d > SIZE_MAX / (WIDTH * sizeof(REAL)) ? SIZE_MAX : d * WIDTH * sizeof(REAL);
}

/* Up to WIDTH columns of b side by side, zeros after them: rows of b far apart would compete for the cache. */
static void NAME(pack)(REAL *restrict strip, const REAL *restrict b, size_t d, size_t columns, size_t width)
{
    memset(strip, 0, d * WIDTH * sizeof *strip);
    for (size_t j = 0; j < d; j++) memcpy(strip + j * WIDTH, b + j * columns, width * sizeof *b);
}

/* Up to ROWS rows of a by a strip. Sums apart by name: as an array of arrays GCC keeps them in memory, and is five
 * times slower. Rows that are not there repeat the first, for nothing. */
LNS_CLONES static void NAME(patch)(REAL *restrict out, const REAL *restrict a, const REAL *restrict strip, size_t rows,
                                   size_t d, size_t columns, size_t width)
{
    REAL sum0[WIDTH] = {0}, sum1[WIDTH] = {0}, sum2[WIDTH] = {0}, sum3[WIDTH] = {0};
    const REAL *a1 = rows > 1 ? a + d : a, *a2 = rows > 2 ? a + 2 * d : a, *a3 = rows > 3 ? a + 3 * d : a;
    for (size_t j = 0; j < d; j++) {
        REAL x0 = a[j], x1 = a1[j], x2 = a2[j], x3 = a3[j];
        for (size_t l = 0; l < WIDTH; l++) {
            REAL y = strip[j * WIDTH + l];
            sum0[l] += x0 * y;
            sum1[l] += x1 * y;
            sum2[l] += x2 * y;
            sum3[l] += x3 * y;
        }
    }
    memcpy(out, sum0, width * sizeof *out);
    if (rows > 1) memcpy(out + columns, sum1, width * sizeof *out);
    if (rows > 2) memcpy(out + 2 * columns, sum2, width * sizeof *out);
    if (rows > 3) memcpy(out + 3 * columns, sum3, width * sizeof *out);
}

void NAME(lns_product)(REAL *out, const REAL *a, const REAL *b, size_t n, size_t d, size_t columns, void *scratch,
                       int threads)
{
    ptrdiff_t blocks = (ptrdiff_t)((n + BLOCK - 1) / BLOCK);
    ptrdiff_t t;
    LNS_PARALLEL_FOR(threads)
    for (t = 0; t < blocks; t++) {
        REAL *strip = (REAL *)scratch + (size_t)lns_thread() * d * WIDTH;
        size_t first = (size_t)t * BLOCK, end = n - first < BLOCK ? n : first + BLOCK;
        for (size_t c = 0; c < columns; c += WIDTH) {
            size_t width = columns - c < WIDTH ? columns - c : WIDTH;
            NAME(pack)(strip, b + c, d, columns, width);
            for (size_t i = first; i < end; i += ROWS) {
                size_t rows = end - i < ROWS ? end - i : ROWS;
                NAME(patch)(out + i * columns + c, a + i * d, strip, rows, d, columns, width);
            }
        }
    }
}
