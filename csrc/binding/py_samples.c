/* Binding of what two samples give in closed form: maps from one to the other, and how well a unit tells them apart. */
#include "py_checks.h"

#include "lns_rank.h"
#include "lns_tile.h"
#include "lns_transport.h"

typedef struct {
    PyArrayObject *x, *y;                                     /* borrowed */
    size_t n, m, columns;
    int type, threads;
} samples_t;

/* The arguments of every function here: two finite samples and the number of threads. */
static int take_samples(samples_t *s, PyObject *args, const char *format, const char *x_name, const char *y_name)
{
    PyObject *x, *y;
    if (!PyArg_ParseTuple(args, format, &x, &y, &s->threads)) return -1;
    if ((s->type = require_samples(x, x_name, y, y_name)) < 0 || require_threads(s->threads) < 0) return -1;
    s->x = (PyArrayObject *)x;
    s->y = (PyArrayObject *)y;
    if (require_finite(s->x, x_name) < 0 || require_finite(s->y, y_name) < 0) return -1;
    s->n = (size_t)PyArray_DIM(s->x, 0);
    s->m = (size_t)PyArray_DIM(s->y, 0);
    s->columns = (size_t)PyArray_DIM(s->x, 1);
    return 0;
}

static PyArrayObject *new_column_results(const samples_t *s)
{
    npy_intp columns = (npy_intp)s->columns;
    return NEW(1, &columns, NPY_FLOAT64);
}

/* ---- lns_transport ---- */

static PyObject *py_mean_shift(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyArrayObject *bias = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:mean_shift", "x", "y") < 0 || !(bias = new_column_results(&s))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (s.type == NPY_FLOAT32)
        lns_mean_shift_f32(DOUBLES(bias), FLOATS(s.x), FLOATS(s.y), s.n, s.m, s.columns, s.threads);
    else lns_mean_shift_f64(DOUBLES(bias), DOUBLES(s.x), DOUBLES(s.y), s.n, s.m, s.columns, s.threads);
    Py_END_ALLOW_THREADS
    return (PyObject *)bias;
}

static PyObject *py_gaussian_map(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *result = NULL;
    PyArrayObject *weight = NULL, *bias = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:gaussian_map", "x", "y") < 0) goto done;
    if (!(weight = new_column_results(&s)) || !(bias = new_column_results(&s))) goto done;
    double *w = DOUBLES(weight), *b = DOUBLES(bias);
    Py_BEGIN_ALLOW_THREADS
    if (s.type == NPY_FLOAT32) lns_gaussian_map_f32(w, b, FLOATS(s.x), FLOATS(s.y), s.n, s.m, s.columns, s.threads);
    else lns_gaussian_map_f64(w, b, DOUBLES(s.x), DOUBLES(s.y), s.n, s.m, s.columns, s.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, weight, bias);
done:
    Py_XDECREF(weight); Py_XDECREF(bias);
    return result;
}

static PyObject *py_linear_map(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *result = NULL;
    PyArrayObject *weight = NULL, *bias = NULL;
    void *scratch = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:linear_map", "x", "y") < 0) goto done;
    size_t each = s.type == NPY_FLOAT32 ? lns_linear_map_scratch_f32(s.n, s.m) : lns_linear_map_scratch_f64(s.n, s.m);
    if (!(weight = new_column_results(&s)) || !(bias = new_column_results(&s))) goto done;
    if (!(scratch = tile_scratch(each, (npy_intp)s.columns, &s.threads))) goto done;
    double *w = DOUBLES(weight), *b = DOUBLES(bias);
    void *work = on_line(scratch);
    Py_BEGIN_ALLOW_THREADS
    if (s.type == NPY_FLOAT32) lns_linear_map_f32(w, b, FLOATS(s.x), FLOATS(s.y), s.n, s.m, s.columns, work, s.threads);
    else lns_linear_map_f64(w, b, DOUBLES(s.x), DOUBLES(s.y), s.n, s.m, s.columns, work, s.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, weight, bias);
done:
    PyMem_Free(scratch);
    Py_XDECREF(weight); Py_XDECREF(bias);
    return result;
}

/* ---- lns_rank ---- */

static PyObject *py_rank(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *result = NULL;
    PyArrayObject *auroc = NULL, *precision = NULL;
    void *scratch = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:rank", "positive", "negative") < 0) goto done;
    if (s.n + s.m > LNS_MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "positive, negative: expected at most 2^26 rows together, got %zu", s.n + s.m);
        goto done;
    }
    size_t each = s.type == NPY_FLOAT32 ? lns_rank_scratch_f32(s.n + s.m) : lns_rank_scratch_f64(s.n + s.m);
    if (!(auroc = new_column_results(&s)) || !(precision = new_column_results(&s))) goto done;
    if (!(scratch = tile_scratch(each, (npy_intp)s.columns, &s.threads))) goto done;
    double *area = DOUBLES(auroc), *average = DOUBLES(precision);
    void *work = on_line(scratch);
    Py_BEGIN_ALLOW_THREADS
    if (s.type == NPY_FLOAT32) lns_rank_f32(area, average, FLOATS(s.x), FLOATS(s.y), s.n, s.m, s.columns, work, s.threads);
    else lns_rank_f64(area, average, DOUBLES(s.x), DOUBLES(s.y), s.n, s.m, s.columns, work, s.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, auroc, precision);
done:
    PyMem_Free(scratch);
    Py_XDECREF(auroc); Py_XDECREF(precision);
    return result;
}

PyMethodDef samples_methods[] = {
    {"mean_shift", py_mean_shift, METH_VARARGS, "mean_shift(x, y, threads) -> bias"},
    {"gaussian_map", py_gaussian_map, METH_VARARGS, "gaussian_map(x, y, threads) -> weight, bias"},
    {"linear_map", py_linear_map, METH_VARARGS, "linear_map(x, y, threads) -> weight, bias"},
    {"rank", py_rank, METH_VARARGS, "rank(positive, negative, threads) -> auroc, average precision"},
    {NULL, NULL, 0, NULL},
};
