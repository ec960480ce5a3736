/* The loop of most kernels: rows cut into blocks of one size, the last as long as what is left, shared among threads.
 * The size is a constant of the kernel and a block belongs to one thread: the bits do not depend on threads. */
#ifndef LNS_BLOCK_H
#define LNS_BLOCK_H
#include <stddef.h>

#include "lns_port.h"

/* Entries [first, first + count) of a row. */
typedef struct {
    size_t row, first, count;
} lns_block;

static inline size_t lns_least(size_t a, size_t b) { return a < b ? a : b; }

static inline size_t lns_block_count(size_t length, size_t size) { return (length + size - 1) / size; }

static inline lns_block lns_block_at(ptrdiff_t k, size_t length, size_t size)
{
    size_t count = lns_block_count(length, size), row = (size_t)k / count, first = ((size_t)k - row * count) * size;
    return (lns_block){row, first, lns_least(length - first, size)};
}

/* Of the scratch that a caller made for all threads, so many bytes each: that of the thread which asks. */
static inline void *lns_own_scratch(void *scratch, size_t bytes)
{
    return (char *)scratch + (size_t)lns_thread() * bytes;
}

/* The head of the loop: what follows is done for every block, which is lns_block_at(k, length, size). */
#define LNS_EACH_BLOCK(k, rows, length, size, threads)                                                                 \
    ptrdiff_t k;                                                                                                       \
    LNS_PARALLEL_FOR(threads)                                                                                          \
    for (k = 0; k < (ptrdiff_t)((rows) * lns_block_count(length, size)); k++)

#endif
