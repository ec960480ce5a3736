/* A fixed case of a kernel, so many times over: `instructions CASE REPETITIONS`; see instructions.py. Without arguments
 * it says which clone the loops run in here, and which compiler made them. */
#include "lns_affine.h"
#include "lns_prox.h"
#include "lns_quadratic.h"
#include "lns_solve.h"
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

/* A step of the default recipe: its model from eight moves, and where that plus a group penalty is least. */
static int run_solve(int repetitions)
{
    enum { N = 12288, SITES = 4, MOVES = 8 };
    static float x[2 * N], slope[2 * N], moves[MOVES][2 * N], changes[MOVES][2 * N], low[2 * N], high[2 * N], out[2 * N];
    static double curvature[3 * N], blocks[3 * N], correction[4 * MOVES * MOVES], products[2 * MOVES], pull[2 * N];
    static const int64_t offsets[SITES + 1] = {0, 3072, 6144, 9216, N};
    int64_t starts[N / LNS_PIECE + 1], ends[SITES + 1];
    size_t pieces = lns_pieces(starts, offsets, SITES), most = lns_solve_scratch(MOVES, SITES, 1);
    size_t others = lns_correction_scratch(MOVES, pieces) + 8 * pieces + 2 * SITES;
    double *scratch = malloc((most > others ? most : others) * sizeof *scratch);
    lns_quadratic q = {blocks, correction, x, slope, moves[0], changes[0], starts, 0.2, N, MOVES, pieces, 1};
    lns_strengths by = {0.01 / N, 0.02 / N, 0};
    lns_penalty penalty = {offsets, NULL, ends, by, by, SITES, N / SITES, NULL};
    int failed = !scratch;
    for (size_t s = 0; s <= SITES; s++) ends[s] = (int64_t)(s * pieces / SITES);
    fill(slope, 2 * N, 11);
    fill(moves[0], MOVES * 2 * N, 12);
    for (size_t j = 0; j < N; j++) x[j] = 1;
    for (size_t j = 0; j < 2 * N; j++) {
        double bent = (j % 7 + 1.0) / N;
        curvature[j < N ? j : N + j] = bent;                  /* of weights, then of biases; they do not meet */
        slope[j] *= (float)(0.02 * bent);
        for (size_t k = 0; k < MOVES; k++) {
            moves[k][j] *= 0.02f;
            changes[k][j] = (float)((1.5 + 0.5 * (double)(j % 3)) * bent) * moves[k][j];
        }
    }
    lns_quadratic_box(low, high, x, curvature, N, 1);
    for (int k = 0; k < repetitions && !failed; k++) {
        lns_quadratic_blocks(blocks, &q, curvature, offsets, SITES, 0, 1.0, scratch);
        lns_quadratic_correction(correction, &q, 0, scratch);
        failed = !lns_quadratic_solve(out, products, &q, &penalty, low, high, pull, scratch);
    }
    free(scratch);
    return failed;
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
    if (!strcmp(words[1], "solve")) return run_solve(repetitions);
    return 2;
}
