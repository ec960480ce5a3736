/* A fixed case of a kernel, so many times over: `instructions CASE REPETITIONS`; see instructions.py. Without arguments
 * it says which clone the loops run in here, and which compiler made them. */
#include "lns_affine.h"
#include "lns_prox.h"
#include "lns_sort.h"
#include "lns_wasserstein.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 32, COLUMNS = 1024, BATCH = 4, TOKENS = 16, DIM = 512, UNITS = 4096, GROUPS = 4 };
enum { MOST = BATCH * TOKENS * DIM };                         /* the longest array; ROWS * COLUMNS is as long */

static float a[MOST], b[MOST], c[MOST], d[MOST], small[6][BATCH * DIM];
static double wide[COLUMNS];

static void fill(float *x, size_t count, uint64_t state)
{
    for (size_t k = 0; k < count; k++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[k] = (float)(state >> 40) / 8388608.0f - 1;
    }
}

static int run_loss(int repetitions)
{
    void *scratch = malloc(lns_wasserstein_scratch_f32(ROWS));
    if (!scratch) return 1;
    for (size_t j = 0; j < COLUMNS; j++)                      /* targets ascending in every column */
        for (size_t i = 0; i < ROWS; i++) b[i * COLUMNS + j] = (float)i / ROWS + (float)j / COLUMNS;
    for (int k = 0; k < repetitions; k++)
        lns_wasserstein_f32(wide, c, a, b, NULL, NULL, NULL, NULL, 2, ROWS, ROWS, COLUMNS, scratch, 1);
    free(scratch);
    return 0;
}

static void run_affine(int repetitions)
{
    float pool[BATCH * TOKENS], *scale = small[0], *shift = small[1], *pooled = small[2], *scratch;
    float grad_scale[DIM], grad_shift[DIM];
    fill(pool, BATCH * TOKENS, 5);
    scratch = small[3];                                       /* two rows of BATCH * DIM */
    for (int k = 0; k < repetitions; k++) {
        lns_affine_last_f32(c, pooled, a, scale, shift, pool, BATCH, TOKENS, DIM, 1);
        lns_affine_last_grad_f32(d, grad_scale, grad_shift, b, pooled, a, scale, pool, scratch, BATCH, TOKENS, DIM, 1);
    }
}

static void run_prox(int repetitions)
{
    static const int64_t offsets[GROUPS + 1] = {0, 1000, 1024, 3000, UNITS};
    lns_strengths by = {0.1, 0.05, 0.01};
    double sums[3], parts[6 * GROUPS];
    for (int k = 0; k < repetitions; k++)
        lns_proximal_step_f32(c, sums, a, b, NULL, offsets, NULL, by, by, 0.5, parts, NULL, GROUPS, 1976, 1);
}

int main(int count, char **words)
{
    if (count != 3) {
        puts(__builtin_cpu_supports("avx512vl") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "default");
        puts(__VERSION__);
        return 0;
    }
    int repetitions = atoi(words[2]);
    fill(a, MOST, 1);
    fill(b, MOST, 2);
    for (size_t k = 0; k < 6; k++) fill(small[k], BATCH * DIM, 3 + k);
    if (!strcmp(words[1], "loss")) return run_loss(repetitions);
    if (!strcmp(words[1], "affine")) return run_affine(repetitions), 0;
    if (!strcmp(words[1], "prox")) return run_prox(repetitions), 0;
    return 2;
}
