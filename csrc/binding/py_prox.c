/* Binding of lns_prox. */
#include "py_checks.h"

#include "lns_prox.h"

typedef struct {
    PyArrayObject *x, *gradient, *scales, *offsets, *order;   /* borrowed; NULL for None */
    size_t groups, widest;
    npy_intp units;
    double step;
    lns_strengths weights, biases;
    int threads;
} proximal_t;

/* Ascending from 0; finds the units that they lead to and the widest group. */
static int require_offsets(proximal_t *t)
{
    const int64_t *at = LONGS(t->offsets);
    t->groups = (size_t)PyArray_DIM(t->offsets, 0) - 1;
    int right = at[0] == 0;
    for (size_t k = 0; right && k < t->groups; k++) {
        right = at[k] <= at[k + 1];
        if (right && (size_t)(at[k + 1] - at[k]) > t->widest) t->widest = (size_t)(at[k + 1] - at[k]);
    }
    t->units = (npy_intp)at[t->groups];
    npy_intp count = PyArray_DIM(t->x, 0);
    if (right && t->units == count / 2 && count % 2 == 0) return 0;
    PyErr_Format(PyExc_ValueError, "offsets: expected an ascent from 0 to half of the %zd entries of x",
                 (Py_ssize_t)count);
    return -1;
}

static int require_strengths(const proximal_t *t)
{
    if (t->weights.l1 >= 0 && t->weights.group >= 0 && t->weights.ridge >= 0 && t->biases.l1 >= 0
        && t->biases.group >= 0) return 0;
    PyErr_SetString(PyExc_ValueError, "l1, group, l1_bias, group_bias, ridge: expected strengths of at least 0");
    return -1;
}

static int require_proximal(proximal_t *t, PyObject *args)
{
    PyObject *x, *gradient, *scales, *offsets, *order;        /* borrowed */
    if (!PyArg_ParseTuple(args, "OOOOOddddddi:proximal_step", &x, &gradient, &scales, &offsets, &order, &t->step,
                          &t->weights.l1, &t->weights.group, &t->biases.l1, &t->biases.group, &t->weights.ridge,
                          &t->threads)) return -1;
    t->biases.ridge = t->weights.ridge;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return -1;
    t->x = (PyArrayObject *)x;
    npy_intp count = PyArray_DIM(t->x, 0);
    if (gradient != Py_None) {
        if (require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return -1;
        t->gradient = (PyArrayObject *)gradient;
    }
    if (scales != Py_None) {
        if (require_vector(scales, "scales", NPY_FLOAT32, count) < 0) return -1;
        t->scales = (PyArrayObject *)scales;
    }
    if (require(offsets, "offsets", NPY_INT64, 1) < 0) return -1;
    t->offsets = (PyArrayObject *)offsets;
    if (require_offsets(t) < 0) return -1;
    if (order != Py_None) {
        if (require_vector(order, "order", NPY_INT64, t->units) < 0) return -1;
        t->order = (PyArrayObject *)order;
        if (require_permutation(t->order, "order") < 0) return -1;
    }
    if (!(t->step >= 0)) {
        PyErr_SetString(PyExc_ValueError, "step: expected at least 0");
        return -1;
    }
    return require_strengths(t) < 0 ? -1 : require_threads(t->threads);
}

static PyObject *py_proximal_step(PyObject *Py_UNUSED(self), PyObject *args)
{
    proximal_t t = {0};
    PyArrayObject *out = NULL;                                /* owned, as are parts, rows and result */
    PyObject *result = NULL;
    double *parts = NULL, sums[3];
    float *rows = NULL;
    if (require_proximal(&t, args) < 0) goto done;
    if ((size_t)t.threads > 2 * t.groups) t.threads = (int)(2 * t.groups);
    if (!(out = NEW(1, PyArray_DIMS(t.x), NPY_FLOAT32))) goto done;
    if (!(parts = scratch_bytes(t.groups, 6 * sizeof *parts, 1))) goto done;
    if (t.order && !(rows = scratch_bytes(t.widest, 4 * sizeof *rows, t.threads))) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_proximal_step_f32(FLOATS(out), sums, FLOATS(t.x), t.gradient ? FLOATS(t.gradient) : NULL,
                          t.scales ? FLOATS(t.scales) : NULL, LONGS(t.offsets), t.order ? LONGS(t.order) : NULL,
                          t.weights, t.biases, t.step, parts, rows, t.groups, t.widest, t.threads);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("Oddd", out, sums[0], sums[1], sums[2]);
done:
    Py_XDECREF(out);
    PyMem_Free(parts);
    PyMem_Free(rows);
    return result;
}

PyMethodDef prox_methods[] = {
    {"proximal_step", py_proximal_step, METH_VARARGS,
     "proximal_step(x, gradient, scales, offsets, order, step, l1, group, l1_bias, group_bias, ridge, threads)"
     " -> new x, its penalty, <gradient, move>, |move|^2"},
    {NULL, NULL, 0, NULL},
};
