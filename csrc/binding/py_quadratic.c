/* Binding of the default recipe's model of the loss: in place, on arrays that a workspace in Python keeps. */
#include "py_checks.h"

#include "lns_quadratic.h"
#include "lns_solve.h"

/* The arrays of a call, for require_apart: first those that are written. */
enum { MOST = 24 };
typedef struct {
    PyObject *arrays[MOST];                                   /* borrowed */
    const char *names[MOST];
    int written, count;
} arrays_t;

/* What every call ends with. */
typedef struct {
    PyObject *x, *gradient, *blocks, *correction, *moves, *changes, *offsets;     /* borrowed */
    lns_quadratic q;
    npy_intp entries;                                         /* of x */
    size_t sites;
    int64_t *starts;                                          /* owned, as is scratch */
    double *scratch;
} model_t;

static void release(model_t *m)
{
    PyMem_Free(m->starts);
    PyMem_Free(m->scratch);
}

/* An array of so many rows and columns, or a vector where rows is 0. */
static int take(arrays_t *all, PyObject *object, const char *name, int type, npy_intp rows, npy_intp columns,
                int is_written)
{
    npy_intp shape[2] = {rows, columns};
    if (rows > 0 ? require_shape(object, name, type, 2, shape) < 0 : require_vector(object, name, type, columns) < 0)
        return -1;
    if (is_written && PyArray_FailUnlessWriteable((PyArrayObject *)object, name) < 0) return -1;
    all->arrays[all->count] = object;
    all->names[all->count++] = name;
    all->written += is_written;
    return 0;
}

/* A vector like x. */
static int take_floats(arrays_t *all, const model_t *m, PyObject *object, const char *name, int is_written)
{
    return take(all, object, name, NPY_FLOAT32, 0, m->entries, is_written);
}

/* How large everything else must be: x and moves, None where there are none. */
static int require_sizes(model_t *m)
{
    if (require(m->x, "x", NPY_FLOAT32, 1) < 0) return -1;
    m->entries = PyArray_DIM((PyArrayObject *)m->x, 0);
    if (m->entries % 2) {
        PyErr_Format(PyExc_ValueError, "x: expected [weights, biases], as many of each, got %zd", (Py_ssize_t)m->entries);
        return -1;
    }
    m->q.units = (size_t)m->entries / 2;
    if (m->moves == Py_None) {
        if (m->changes == Py_None && m->correction == Py_None) return 0;
        PyErr_SetString(PyExc_ValueError, "moves: expected an array with changes and a correction, got None");
        return -1;
    }
    if (require(m->moves, "moves", NPY_FLOAT32, 2) < 0) return -1;
    npy_intp rows = PyArray_DIM((PyArrayObject *)m->moves, 0);
    if (rows > LNS_MOST_ROWS) {
        PyErr_Format(PyExc_ValueError, "moves: expected at most %d rows, got %zd", LNS_MOST_ROWS, (Py_ssize_t)rows);
        return -1;
    }
    m->q.rows = (size_t)rows;
    return 0;
}

/* Ascending from 0 to the number of units. */
static int require_ends(PyObject *offsets, const char *name, size_t units)
{
    npy_intp count = PyArray_DIM((PyArrayObject *)offsets, 0);
    const int64_t *at = LONGS((PyArrayObject *)offsets);
    int right = at[0] == 0 && at[count - 1] == (int64_t)units;
    for (npy_intp k = 1; right && k < count; k++) right = at[k - 1] <= at[k];
    if (right) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected an ascent from 0 to half of the %zu entries of x", name, 2 * units);
    return -1;
}

/* The rest of the model, after the call's own arrays. is_made: its blocks and correction are what the call makes. */
static int take_model(arrays_t *all, model_t *m, int is_made, int threads)
{
    lns_quadratic *q = &m->q;
    npy_intp rows = (npy_intp)q->rows, units = (npy_intp)q->units;
    if (take(all, m->blocks, "blocks", NPY_FLOAT64, 3, units, is_made) < 0) return -1;
    if (rows && take(all, m->correction, "correction", NPY_FLOAT64, 2 * rows, 2 * rows, is_made) < 0) return -1;
    if (take_floats(all, m, m->x, "x", 0) < 0 || take_floats(all, m, m->gradient, "gradient", 0) < 0) return -1;
    if (rows && (take(all, m->moves, "moves", NPY_FLOAT32, rows, m->entries, 0) < 0
                 || take(all, m->changes, "changes", NPY_FLOAT32, rows, m->entries, 0) < 0)) return -1;
    if (require(m->offsets, "offsets", NPY_INT64, 1) < 0 || require_threads(threads) < 0) return -1;
    m->sites = (size_t)PyArray_DIM((PyArrayObject *)m->offsets, 0) - 1;
    all->arrays[all->count] = m->offsets;
    all->names[all->count++] = "offsets";
    q->threads = threads;
    return 0;
}

/* Once all arrays are taken: what they hold, and room for so many doubles. */
static int open_model(const arrays_t *all, model_t *m)
{
    if (require_apart(all->arrays, all->names, all->written, all->count) < 0) return -1;
    if (require_ends(m->offsets, "offsets", m->q.units) < 0) return -1;
    lns_quadratic *q = &m->q;
    const int64_t *offsets = LONGS((PyArrayObject *)m->offsets);
    q->pieces = lns_pieces(NULL, offsets, m->sites);
    if (!(m->starts = scratch_bytes(q->pieces + 1, sizeof *m->starts, 1))) return -1;
    lns_pieces(m->starts, offsets, m->sites);
    q->starts = m->starts;
    q->x = FLOATS((PyArrayObject *)m->x);
    q->gradient = FLOATS((PyArrayObject *)m->gradient);
    q->blocks = DOUBLES((PyArrayObject *)m->blocks);
    if (q->rows) {
        q->correction = DOUBLES((PyArrayObject *)m->correction);
        q->moves = FLOATS((PyArrayObject *)m->moves);
        q->changes = FLOATS((PyArrayObject *)m->changes);
    }
    if ((size_t)q->threads > q->pieces) q->threads = (int)q->pieces;
    return 0;
}

static int make_room(model_t *m, size_t doubles) { return (m->scratch = scratch_bytes(doubles, sizeof(double), 1)) ? 0 : -1; }

#define MODEL "OOOOOOOdi"
#define MODEL_ADDRESSES(m, threads)                                                                                    \
    &(m).x, &(m).gradient, &(m).blocks, &(m).correction, &(m).moves, &(m).changes, &(m).offsets, &(m).q.damping, &threads

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static PyObject *py_quadratic_make(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *low, *high, *curvature, *result = NULL;         /* borrowed, but for the result */
    Py_ssize_t oldest;
    double loss;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOnd" MODEL ":quadratic_make", &low, &high, &curvature, &oldest, &loss,
                          MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, low, "low", 1) < 0 || take_floats(&all, &m, high, "high", 1) < 0
        || take_model(&all, &m, 1, threads) < 0
        || take(&all, curvature, "curvature", NPY_FLOAT64, 3, (npy_intp)m.q.units, 0) < 0) goto done;
    size_t rows = m.q.rows;
    if (oldest < 0 || (size_t)oldest >= larger(rows, 1)) {
        PyErr_Format(PyExc_ValueError, "oldest: expected one of %zu rows, got %zd", rows, oldest);
        goto done;
    }
    if (open_model(&all, &m) < 0) goto done;
    if (make_room(&m, larger(8 * m.q.pieces + 2 * m.sites, lns_correction_scratch(rows, m.q.pieces))) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_quadratic_box(FLOATS((PyArrayObject *)low), FLOATS((PyArrayObject *)high), m.q.x,
                      DOUBLES((PyArrayObject *)curvature), m.q.units, m.q.threads);
    lns_quadratic_blocks(DOUBLES((PyArrayObject *)m.blocks), &m.q, DOUBLES((PyArrayObject *)curvature),
                         LONGS((PyArrayObject *)m.offsets), m.sites, (size_t)oldest, loss, m.scratch);
    if (rows) lns_quadratic_correction(DOUBLES((PyArrayObject *)m.correction), &m.q, (size_t)oldest, m.scratch);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&m);
    return result;
}

static PyObject *py_quadratic_value(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *point, *pace, *result = NULL;
    double value;
    int threads;
    if (!PyArg_ParseTuple(args, "OO" MODEL ":quadratic_value", &point, &pace, MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, point, "point", 0) < 0) goto done;
    npy_intp width = 2 * (npy_intp)m.q.rows;
    if (pace != Py_None && take(&all, pace, "pace", NPY_FLOAT64, 0, 2 + 2 * width, 0) < 0) goto done;
    if (take_model(&all, &m, 0, threads) < 0 || open_model(&all, &m) < 0) goto done;
    if (make_room(&m, m.q.pieces * ((size_t)width + 2)) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    value = lns_quadratic_value(&m.q, FLOATS((PyArrayObject *)point),
                                pace == Py_None ? NULL : DOUBLES((PyArrayObject *)pace) + 2, m.scratch);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble(value);
done:
    release(&m);
    return result;
}

static PyObject *py_quadratic_newton(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *out, *result = NULL;
    double ridge;
    int threads;
    if (!PyArg_ParseTuple(args, "Od" MODEL ":quadratic_newton", &out, &ridge, MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, out, "out", 1) < 0 || take_model(&all, &m, 0, threads) < 0
        || open_model(&all, &m) < 0 || make_room(&m, lns_newton_scratch(m.q.rows, m.q.pieces)) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_quadratic_newton(FLOATS((PyArrayObject *)out), &m.q, ridge, m.scratch);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&m);
    return result;
}

static PyObject *py_quadratic_steps(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *steps, *p, *direction, *result = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOO" MODEL ":quadratic_steps", &steps, &p, &direction, MODEL_ADDRESSES(m, threads)))
        goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, steps, "steps", 1) < 0
        || take(&all, p, "p", NPY_FLOAT64, 0, m.entries, 1) < 0
        || take(&all, direction, "direction", NPY_FLOAT64, 0, m.entries, 0) < 0
        || take_model(&all, &m, 0, threads) < 0 || open_model(&all, &m) < 0
        || make_room(&m, m.q.pieces * (2 * m.q.rows + 1)) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_quadratic_steps(FLOATS((PyArrayObject *)steps), DOUBLES((PyArrayObject *)p), &m.q,
                        DOUBLES((PyArrayObject *)direction), m.scratch);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&m);
    return result;
}

static PyObject *py_quadratic_ahead(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *ahead, *slope, *point, *before, *pace, *result = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOO" MODEL ":quadratic_ahead", &ahead, &slope, &point, &before, &pace,
                          MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, ahead, "ahead", 1) < 0
        || take_floats(&all, &m, slope, "slope", 1) < 0 || take_floats(&all, &m, point, "point", 0) < 0
        || take_floats(&all, &m, before, "before", 0) < 0
        || take(&all, pace, "pace", NPY_FLOAT64, 0, 2 + 4 * (npy_intp)m.q.rows, 0) < 0
        || take_model(&all, &m, 0, threads) < 0 || open_model(&all, &m) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_quadratic_ahead(FLOATS((PyArrayObject *)ahead), FLOATS((PyArrayObject *)slope), &m.q,
                        FLOATS((PyArrayObject *)point), FLOATS((PyArrayObject *)before), DOUBLES((PyArrayObject *)pace));
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&m);
    return result;
}

static PyObject *py_quadratic_settle(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    arrays_t all = {0};
    PyObject *fresh, *pace, *point, *before, *low, *high, *steps, *result = NULL;
    int threads, is_done;
    if (!PyArg_ParseTuple(args, "OOOOOOO" MODEL ":quadratic_settle", &fresh, &pace, &point, &before, &low, &high, &steps,
                          MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, fresh, "fresh", 1) < 0
        || take(&all, pace, "pace", NPY_FLOAT64, 0, 2 + 4 * (npy_intp)m.q.rows, 1) < 0
        || take_floats(&all, &m, point, "point", 0) < 0 || take_floats(&all, &m, before, "before", 0) < 0
        || take_floats(&all, &m, low, "low", 0) < 0 || take_floats(&all, &m, high, "high", 0) < 0
        || take_floats(&all, &m, steps, "steps", 0) < 0 || take_model(&all, &m, 0, threads) < 0
        || open_model(&all, &m) < 0 || make_room(&m, m.q.pieces * (2 * m.q.rows + 3)) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    is_done = lns_quadratic_settle(FLOATS((PyArrayObject *)fresh), DOUBLES((PyArrayObject *)pace), &m.q,
                                   FLOATS((PyArrayObject *)point), FLOATS((PyArrayObject *)before),
                                   FLOATS((PyArrayObject *)low), FLOATS((PyArrayObject *)high),
                                   FLOATS((PyArrayObject *)steps), m.scratch);
    Py_END_ALLOW_THREADS
    result = PyBool_FromLong(is_done);
done:
    release(&m);
    return result;
}

/* ---- the whole inner loop ---- */

typedef struct {
    PyObject *offsets, *order;                                /* borrowed */
    lns_penalty by;
    int64_t *ends;                                            /* owned, as is rows */
    float *rows;
} penalty_t;

static int require_strengths(const lns_penalty *by)
{
    if (by->weights.l1 >= 0 && by->weights.group >= 0 && by->weights.ridge >= 0 && by->biases.l1 >= 0
        && by->biases.group >= 0) return 0;
    PyErr_SetString(PyExc_ValueError, "l1, group, l1_bias, group_bias, ridge: expected strengths of at least 0");
    return -1;
}

/* Which units a step must see together: those of a piece where no norm of a group is needed, of a site, or all.
 * by_site: those of a site even where sites are too few to be shared among threads. */
static int open_penalty(penalty_t *p, const model_t *m, int by_site)
{
    lns_penalty *by = &p->by;
    if (require_ends(p->offsets, "group_offsets", m->q.units) < 0 || require_strengths(by) < 0) return -1;
    by->offsets = LONGS((PyArrayObject *)p->offsets);
    by->groups = (size_t)PyArray_DIM((PyArrayObject *)p->offsets, 0) - 1;
    for (size_t k = 0; k < by->groups; k++) by->widest = larger(by->widest, (size_t)(by->offsets[k + 1] - by->offsets[k]));
    int is_separable = !(by->weights.group > 0) && !(by->biases.group > 0);
    if (p->order != Py_None) {
        if (require_permutation((PyArrayObject *)p->order, "order") < 0) return -1;
        by->order = LONGS((PyArrayObject *)p->order);
        if (!is_separable) {
            by->rows = p->rows = scratch_bytes(by->widest, 4 * sizeof *p->rows, m->q.threads);
            return p->rows ? 0 : -1;
        }
    }
    if (is_separable) {
        by->offsets = m->starts;
        by->groups = m->q.pieces;
    } else if (!by_site && by->groups < 2 * (size_t)m->q.threads) return 0;
    if (!(p->ends = scratch_bytes(by->groups + 1, sizeof *p->ends, 1))) return -1;
    for (size_t k = 0, piece = 0; k <= by->groups; k++) {
        while (m->starts[piece] < by->offsets[k]) piece++;
        if (m->starts[piece] != by->offsets[k]) return 0;     /* not the model's sites */
        p->ends[k] = (int64_t)piece;
    }
    by->ends = p->ends;
    return 0;
}

/* What a search for the minimum takes beside the arrays that it alone writes; then the model is open. steps: or NULL. */
static int open_search(arrays_t *all, model_t *m, penalty_t *p, PyObject *pace, PyObject *low, PyObject *high,
                       PyObject *steps, int by_site, int threads)
{
    p->by.biases.ridge = p->by.weights.ridge;
    if (take(all, pace, "pace", NPY_FLOAT64, 0, 2 + 4 * (npy_intp)m->q.rows, 1) < 0
        || take_floats(all, m, low, "low", 0) < 0 || take_floats(all, m, high, "high", 0) < 0
        || (steps && take_floats(all, m, steps, "steps", 0) < 0)
        || require(p->offsets, "group_offsets", NPY_INT64, 1) < 0
        || (p->order != Py_None && take(all, p->order, "order", NPY_INT64, 0, (npy_intp)m->q.units, 0) < 0)
        || take_model(all, m, 0, threads) < 0) return -1;
    all->arrays[all->count] = p->offsets;
    all->names[all->count++] = "group_offsets";
    return open_model(all, m) < 0 ? -1 : open_penalty(p, m, by_site);
}

static void close_search(model_t *m, penalty_t *p)
{
    PyMem_Free(p->ends);
    PyMem_Free(p->rows);
    release(m);
}

static PyObject *py_quadratic_minimise(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    penalty_t p = {0};
    arrays_t all = {0};
    lns_strengths *weights = &p.by.weights, *biases = &p.by.biases;
    PyObject *points, *ahead, *slope, *pace, *low, *high, *steps, *result = NULL;
    int threads;
    size_t last;
    if (!PyArg_ParseTuple(args, "OOOOOOOOOddddd" MODEL ":quadratic_minimise", &points, &ahead, &slope, &pace, &low, &high,
                          &steps, &p.offsets, &p.order, &weights->l1, &weights->group, &biases->l1, &biases->group,
                          &weights->ridge, MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take(&all, points, "points", NPY_FLOAT32, 3, m.entries, 1) < 0
        || take_floats(&all, &m, ahead, "ahead", 1) < 0 || take_floats(&all, &m, slope, "slope", 1) < 0
        || open_search(&all, &m, &p, pace, low, high, steps, 0, threads) < 0) goto done;
    if (make_room(&m, m.q.pieces * (2 * m.q.rows + 3) + 6 * p.by.groups) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    last = lns_quadratic_minimise(FLOATS((PyArrayObject *)points), FLOATS((PyArrayObject *)ahead),
                                  FLOATS((PyArrayObject *)slope), DOUBLES((PyArrayObject *)pace), &m.q, &p.by,
                                  FLOATS((PyArrayObject *)low), FLOATS((PyArrayObject *)high),
                                  FLOATS((PyArrayObject *)steps), m.scratch);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSize_t(last);
done:
    close_search(&m, &p);
    return result;
}

/* ---- the whole minimum ---- */

static PyObject *py_quadratic_solve(PyObject *Py_UNUSED(self), PyObject *args)
{
    model_t m = {0};
    penalty_t p = {0};
    arrays_t all = {0};
    lns_strengths *weights = &p.by.weights, *biases = &p.by.biases;
    PyObject *out, *pace, *room, *low, *high, *result = NULL;
    int threads, is_least = 0;
    if (!PyArg_ParseTuple(args, "OOOOOOOddddd" MODEL ":quadratic_solve", &out, &pace, &room, &low, &high, &p.offsets,
                          &p.order, &weights->l1, &weights->group, &biases->l1, &biases->group, &weights->ridge,
                          MODEL_ADDRESSES(m, threads))) goto done;
    if (require_sizes(&m) < 0 || take_floats(&all, &m, out, "out", 1) < 0
        || take(&all, room, "room", NPY_FLOAT64, 0, m.entries, 1) < 0
        || open_search(&all, &m, &p, pace, low, high, NULL, 1, threads) < 0) goto done;
    if (p.by.ends) {
        if (make_room(&m, lns_solve_scratch(m.q.rows, p.by.groups, m.q.threads)) < 0) goto done;
        Py_BEGIN_ALLOW_THREADS
        is_least = lns_quadratic_solve(FLOATS((PyArrayObject *)out), DOUBLES((PyArrayObject *)pace) + 2, &m.q, &p.by,
                                       FLOATS((PyArrayObject *)low), FLOATS((PyArrayObject *)high),
                                       DOUBLES((PyArrayObject *)room), m.scratch);
        Py_END_ALLOW_THREADS
    }
    result = PyBool_FromLong(is_least);
done:
    close_search(&m, &p);
    return result;
}

#define MODEL_DOC ", x, gradient, blocks, correction, moves, changes, offsets, damping, threads)"

PyMethodDef quadratic_methods[] = {
    {"quadratic_make", py_quadratic_make, METH_VARARGS,
     "quadratic_make(low, high, curvature, oldest, loss" MODEL_DOC ": low, high, blocks and correction change in place"},
    {"quadratic_value", py_quadratic_value, METH_VARARGS, "quadratic_value(point, pace" MODEL_DOC " -> float"},
    {"quadratic_newton", py_quadratic_newton, METH_VARARGS, "quadratic_newton(out, ridge" MODEL_DOC ": out in place"},
    {"quadratic_steps", py_quadratic_steps, METH_VARARGS,
     "quadratic_steps(steps, p, direction" MODEL_DOC ": steps, and p as scratch, in place"},
    {"quadratic_ahead", py_quadratic_ahead, METH_VARARGS,
     "quadratic_ahead(ahead, slope, point, before, pace" MODEL_DOC ": ahead and slope in place"},
    {"quadratic_settle", py_quadratic_settle, METH_VARARGS,
     "quadratic_settle(fresh, pace, point, before, low, high, steps" MODEL_DOC ": fresh and pace in place -> done?"},
    {"quadratic_minimise", py_quadratic_minimise, METH_VARARGS,
     "quadratic_minimise(points, ahead, slope, pace, low, high, steps, group_offsets, order, l1, group, l1_bias,"
     " group_bias, ridge" MODEL_DOC ": the first four in place -> which of the points is the last"},
    {"quadratic_solve", py_quadratic_solve, METH_VARARGS,
     "quadratic_solve(out, pace, room, low, high, group_offsets, order, l1, group, l1_bias, group_bias, ridge" MODEL_DOC
     ": the first three in place -> is out the minimum? Never for groups across sites"},
    {NULL, NULL, 0, NULL},
};
