/* Included by lns_sort.c once for each kind of tile; not a header of its own. REAL is the type, NAME(f) its symbol,
 * PARTS what a row consists of. */

size_t NAME(lns_tile_entries)(size_t n) { return PARTS * (n + 1) * LNS_PITCH; }

/* ---- a group of rows: Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, section 5.3.4) ----
 * Straight lines of comparisons between rows whose numbers the compiler knows, so that eight lanes of sixteen rows stay
 * in vector registers. Which comparisons are made does not depend on the data, so all lanes make the same; the place is
 * part of what is compared, which makes an unstable network stable. */

LNS_INLINE void NAME(take)(int64_t *restrict v, const int64_t *restrict tile, const size_t *restrict at, size_t n)
{
    LNS_UNROLL
    for (size_t k = 0; k < GROUP; k++)
        for (size_t part = 0; part < PARTS; part++)
            for (size_t l = 0; l < VECTOR; l++)
                v[(part * GROUP + k) * VECTOR + l] = tile[part * (n + 1) * LNS_PITCH + at[k] + l];
}

LNS_INLINE void NAME(put)(int64_t *restrict tile, const int64_t *restrict v, const size_t *restrict at, size_t n)
{
    LNS_UNROLL
    for (size_t k = 0; k < GROUP; k++)
        for (size_t part = 0; part < PARTS; part++)
            for (size_t l = 0; l < VECTOR; l++)
                tile[part * (n + 1) * LNS_PITCH + at[k] + l] = v[(part * GROUP + k) * VECTOR + l];
}

LNS_INLINE void NAME(pair)(int64_t *v, size_t i, size_t j)
{
    NAME(exchange)(v + i * VECTOR, v + j * VECTOR, GROUP * VECTOR, VECTOR);
}

LNS_INLINE void NAME(sort4)(int64_t *v, size_t i)
{
    NAME(pair)(v, i, i + 1); NAME(pair)(v, i + 2, i + 3);
    NAME(pair)(v, i, i + 2); NAME(pair)(v, i + 1, i + 3);
    NAME(pair)(v, i + 1, i + 2);
}

LNS_INLINE void NAME(merge8)(int64_t *v, size_t i)
{
    NAME(pair)(v, i, i + 4); NAME(pair)(v, i + 1, i + 5); NAME(pair)(v, i + 2, i + 6); NAME(pair)(v, i + 3, i + 7);
    NAME(pair)(v, i + 2, i + 4); NAME(pair)(v, i + 3, i + 5);
    NAME(pair)(v, i + 1, i + 2); NAME(pair)(v, i + 3, i + 4); NAME(pair)(v, i + 5, i + 6);
}

LNS_INLINE void NAME(merge16)(int64_t *v)
{
    NAME(pair)(v, 0, 8); NAME(pair)(v, 1, 9); NAME(pair)(v, 2, 10); NAME(pair)(v, 3, 11);
    NAME(pair)(v, 4, 12); NAME(pair)(v, 5, 13); NAME(pair)(v, 6, 14); NAME(pair)(v, 7, 15);
    NAME(pair)(v, 4, 8); NAME(pair)(v, 5, 9); NAME(pair)(v, 6, 10); NAME(pair)(v, 7, 11);
    NAME(pair)(v, 2, 4); NAME(pair)(v, 3, 5); NAME(pair)(v, 6, 8); NAME(pair)(v, 7, 9);
    NAME(pair)(v, 10, 12); NAME(pair)(v, 11, 13);
    NAME(pair)(v, 1, 2); NAME(pair)(v, 3, 4); NAME(pair)(v, 5, 6); NAME(pair)(v, 7, 8);
    NAME(pair)(v, 9, 10); NAME(pair)(v, 11, 12); NAME(pair)(v, 13, 14);
}

LNS_INLINE void NAME(sort16)(int64_t *v)
{
    NAME(sort4)(v, 0); NAME(sort4)(v, 4); NAME(sort4)(v, 8); NAME(sort4)(v, 12);
    NAME(merge8)(v, 0); NAME(merge8)(v, 8);
    NAME(merge16)(v);
}

LNS_CLONES static void NAME(sort_group)(int64_t *restrict tile, const size_t *restrict at, size_t n)
{
    for (size_t l = 0; l < LNS_LANES; l += VECTOR) {
        int64_t v[PARTS * GROUP * VECTOR];
        NAME(take)(v, tile + l, at, n);
        NAME(sort16)(v);
        NAME(put)(tile + l, v, at, n);
    }
}

/* The same for rows that come straight from x, all of them there and as wide as the tile. */
LNS_CLONES static void NAME(sort_loaded)(int64_t *restrict tile, const size_t *restrict at, const REAL *restrict x,
                                         size_t first, size_t n, size_t stride)
{
    for (size_t l = 0; l < LNS_LANES; l += VECTOR) {
        int64_t v[PARTS * GROUP * VECTOR];
        LNS_UNROLL
        for (size_t k = 0; k < GROUP; k++)
            NAME(load)(v + k * VECTOR, x + (first + k) * stride + l, (first + k) * LNS_LANES + l, GROUP * VECTOR,
                       VECTOR);
        NAME(sort16)(v);
        NAME(put)(tile + l, v, at, n);
    }
}

/* Up to GROUP rows of x into the tile, which may be wider. */
LNS_CLONES static void NAME(load_rows)(int64_t *tile, const REAL *x, size_t first, size_t n, size_t stride,
                                       size_t width)
{
    for (size_t i = first; i < first + GROUP && i < n; i++) {
        REAL padded[LNS_LANES] = {0};
        memcpy(padded, x + i * stride, width * sizeof *x);
        NAME(load)(tile + i * LNS_PITCH, padded, i * LNS_LANES, (n + 1) * LNS_PITCH, LNS_LANES);
    }
}

/* The first eight rows of the group are sorted, and so are the last. */
LNS_CLONES static void NAME(merge_group)(int64_t *restrict tile, const size_t *restrict at, size_t n)
{
    for (size_t l = 0; l < LNS_LANES; l += VECTOR) {
        int64_t v[PARTS * GROUP * VECTOR];
        NAME(take)(v, tile + l, at, n);
        NAME(merge16)(v);
        NAME(put)(tile + l, v, at, n);
    }
}

/* ---- a tile ---- */

/* The rounds of an odd-even merge of a block of size rows that compare rows less than stride apart. */
LNS_CLONES static void NAME(merge_near)(int64_t *tile, size_t first, size_t size, size_t stride, size_t n)
{
    for (size_t k = stride / 2; k > 0; k /= 2)
        for (size_t j = first + k; j + k < first + size; j += 2 * k)
            for (size_t i = j; i < j + k && i + k < n; i++)
                NAME(exchange)(tile + i * LNS_PITCH, tile + (i + k) * LNS_PITCH, (n + 1) * LNS_PITCH, LNS_LANES);
}

/* Rows [first, first + size) of x, size a power of two from GROUP on: halves first, so that most comparisons are among
 * rows that are in the cache, then Batcher's odd-even merge. Its first four rounds compare rows that are multiples of a
 * sixteenth of the block apart: they merge groups. */
static void NAME(sort_rows)(int64_t *tile, const REAL *x, size_t first, size_t size, size_t n, size_t stride,
                            size_t width)
{
    size_t at[GROUP], apart = size / GROUP;
    if (size == GROUP) {
        group_at(at, first, 1, n);
        if (width == LNS_LANES && first + GROUP <= n) {
            NAME(sort_loaded)(tile, at, x, first, n, stride);
            return;
        }
        NAME(load_rows)(tile, x, first, n, stride, width);
        NAME(sort_group)(tile, at, n);
        return;
    }
    NAME(sort_rows)(tile, x, first, size / 2, n, stride, width);
    if (first + size / 2 >= n) return;
    NAME(sort_rows)(tile, x, first + size / 2, size / 2, n, stride, width);
    for (size_t r = 0; r < apart; r++) {
        group_at(at, first + r, apart, n);
        NAME(merge_group)(tile, at, n);
    }
    NAME(merge_near)(tile, first, size, apart, n);
}

void NAME(lns_tile_sort)(int64_t *tile, const REAL *x, size_t n, size_t stride, size_t width)
{
    size_t top = GROUP;
    while (top < n) top <<= 1;
    for (size_t part = 0; part < PARTS; part++)
        for (size_t l = 0; l < LNS_LANES; l++) tile[(part * (n + 1) + n) * LNS_PITCH + l] = INT64_MAX;
    NAME(sort_rows)(tile, x, 0, top, n, stride, width);
}
