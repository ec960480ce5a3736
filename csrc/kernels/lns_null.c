#include "lns_null.h"

#include <math.h>
#include <string.h>

#include "lns_port.h"
#include "lns_tile.h"
#include "lns_type.h"

static inline double power(double difference, double p)
{
    if (p == 2) return difference * difference;
    if (p == 1) return fabs(difference);
    return pow(fabs(difference), p);
}

/* ---- labels in the order of the sorted values ---- */

enum { BITS = 64, STRIDE = BITS * LNS_WORDS };                /* of a word; words to the next 64 samples */

/* Bit c of row r becomes bit r of row c, in each of LNS_WORDS columns of words: off-diagonal squares change places,
 * smaller and smaller ones (Warren, Hacker's Delight, sec. 7-3, which numbers bits from the other end). Columns side by
 * side keep the loops long where the squares are small. */
LNS_CLONES static void transpose(uint64_t *restrict words)
{
    uint64_t low = 0x00000000FFFFFFFF;                        /* the bits of the squares in the first column */
    for (size_t side = BITS / 2; side > 0; side /= 2, low ^= low << side)
        for (size_t first = 0; first < BITS; first += 2 * side) {
            uint64_t *restrict upper = words + first * LNS_WORDS, *restrict lower = upper + side * LNS_WORDS;
            for (size_t k = 0; k < side * LNS_WORDS; k++) {
                uint64_t change = ((upper[k] >> side) ^ lower[k]) & low;
                lower[k] ^= change;
                upper[k] ^= change << side;
            }
        }
}

/* A block of labels, sample by sample, as bits in the order of sorted values: bit k % 64 of the word that word_of finds
 * for relabelling r, k / 64 strides on, is the label of the k-th smallest value. Bits past the last value are clear. */
static void sort_labels(uint64_t *restrict words, const uint64_t *restrict labels, const int32_t *restrict index,
                        size_t rows)
{
    for (size_t start = 0; start < rows; start += BITS, words += STRIDE) {
        size_t count = lns_least(rows - start, BITS);
        memset(words, 0, STRIDE * sizeof *words);
        for (size_t k = 0; k < count; k++)
            memcpy(words + k * LNS_WORDS, labels + (size_t)index[start + k] * LNS_WORDS, LNS_WORDS * sizeof *words);
        transpose(words);
    }
}

static inline const uint64_t *word_of(const uint64_t *words, size_t r)
{
    return words + r % BITS * LNS_WORDS + r / BITS;
}

/* ---- the cost of each of the first count relabellings of a block ---- */

/* n = m, and all labels in one word: the i-th bit that is set meets the i-th that is not. Several relabellings at once,
 * because each bit found waits for the one before; those past count are relabellings, too. */
static inline void cost_pairs(double *restrict cost, const uint64_t *restrict words, const double *restrict values,
                              size_t count, size_t n, double p)
{
    enum { GROUP = 4 };
    for (size_t r = 0; r < count; r += GROUP) {
        uint64_t source[GROUP], target[GROUP];
        double sum[GROUP] = {0};
        for (size_t q = 0; q < GROUP; q++) target[q] = ~(source[q] = *word_of(words, r + q));
        for (size_t i = 0; i < n; i++)
            for (size_t q = 0; q < GROUP; q++) {
                sum[q] += power(values[lns_lowest_bit(source[q])] - values[lns_lowest_bit(target[q])], p);
                source[q] &= source[q] - 1;
                target[q] &= target[q] - 1;
            }
        for (size_t q = 0; q < GROUP; q++) cost[r + q] = sum[q] / (double)n;
    }
}

/* Where one side of one relabelling is in the sorted values, and the bits of its own that are left in this word. */
typedef struct {
    const uint64_t *word;
    const double *values;
    uint64_t left, flip;                                      /* flip: all bits for the targets, whose bits are clear */
} walk_t;

static inline double next_value(walk_t *walk)
{
    while (!walk->left) {
        walk->word += STRIDE;
        walk->values += BITS;
        walk->left = *walk->word ^ walk->flip;
    }
    double value = walk->values[lns_lowest_bit(walk->left)];
    walk->left &= walk->left - 1;
    return value;
}

/* The general case. A source has the mass of x_mass units, a target that of y_mass: integers, so that no cut of the
 * unit interval is lost or doubled by rounding. */
static inline void cost_runs(double *restrict cost, const uint64_t *restrict words, const double *restrict values,
                             size_t count, size_t n, size_t x_mass, size_t y_mass, double p)
{
    for (size_t r = 0; r < count; r++) {
        const uint64_t *word = word_of(words, r);
        walk_t source = {word, values, *word, 0}, target = {word, values, ~*word, UINT64_MAX};
        double sum = 0, y = 0;
        size_t left_y = 0;
        for (size_t i = 0; i < n; i++) {
            double x = next_value(&source);
            size_t left_x = x_mass;
            do {                                              /* once where both masses are 1, as the compiler sees */
                if (left_y == 0) {
                    y = next_value(&target);
                    left_y = y_mass;
                }
                size_t run = lns_least(left_x, left_y);
                sum += (double)run * power(x - y, p);
                left_x -= run;
                left_y -= run;
            } while (left_x > 0);
        }
        cost[r] = sum / ((double)n * (double)x_mass);
    }
}

static inline void cost_any(double *restrict cost, const uint64_t *restrict words, const double *restrict values,
                            size_t count, size_t n, size_t m, size_t divisor, double p)
{
    if (n == m && n + m <= BITS) cost_pairs(cost, words, values, count, n, p);
    else if (n == m) cost_runs(cost, words, values, count, n, 1, 1, p);
    else cost_runs(cost, words, values, count, n, m / divisor, n / divisor, p);
}

/* The powers that matter are constants where they are inlined; divisor is a common one of n and m. */
LNS_CLONES static void cost_block(double *restrict cost, const uint64_t *restrict words, const double *restrict values,
                                  size_t count, size_t n, size_t m, size_t divisor, double p)
{
    if (p == 2) cost_any(cost, words, values, count, n, m, divisor, 2);
    else if (p == 1) cost_any(cost, words, values, count, n, m, divisor, 1);
    else cost_any(cost, words, values, count, n, m, divisor, p);
}

/* ---- all relabellings of a column ---- */

/* Differences from a cost of the null and then from its mean: nothing cancels, and equal costs have deviation 0. */
LNS_CLONES static void summarise(double *restrict mean, double *restrict std, double *restrict p_value,
                                 const double *restrict cost, size_t relabellings)
{
    double observed = cost[0], first = cost[1], count = (double)(relabellings - 1);
    double sum = 0, squares = 0, reached = 0;
    LNS_SIMD_SUM(sum, reached)
    for (size_t r = 1; r < relabellings; r++) {
        sum += cost[r] - first;
        reached += cost[r] >= observed ? 1 : 0;
    }
    double center = first + sum / count;
    LNS_SIMD_SUM(squares)
    for (size_t r = 1; r < relabellings; r++) squares += (cost[r] - center) * (cost[r] - center);
    *mean = center;
    *std = sqrt(squares / count);
    *p_value = (1 + reached) / (1 + count);
}

static size_t greatest_divisor(size_t a, size_t b)
{
    while (b > 0) {
        size_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

#define TYPE f32
#include "lns_null.inc"
#define TYPE f64
#include "lns_null.inc"
