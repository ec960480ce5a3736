/* Binding of penalties and optimisers. */
#include "py_checks.h"

#include "lns_optim.h"
#include "lns_prox.h"

/* ---- lns_prox ---- */

typedef struct {
    PyArrayObject *v, *offsets;                               /* borrowed */
    float center;
    size_t groups;
    double l1, group, ridge;
} penalty_t;

static int require_penalty(penalty_t *t, PyObject *v, PyObject *offsets)
{
    if (require(v, "v", NPY_FLOAT32, 1) < 0 || require(offsets, "offsets", NPY_INT64, 1) < 0) return -1;
    t->v = (PyArrayObject *)v;
    t->offsets = (PyArrayObject *)offsets;
    t->groups = (size_t)PyArray_DIM(t->offsets, 0) - 1;
    const int64_t *at = LONGS(t->offsets);
    int right = at[0] == 0 && at[t->groups] == PyArray_DIM(t->v, 0);
    for (size_t k = 0; right && k < t->groups; k++) right = at[k] <= at[k + 1];
    if (!right) {
        PyErr_Format(PyExc_ValueError, "offsets: expected an ascent from 0 to %zd", (Py_ssize_t)PyArray_DIM(t->v, 0));
        return -1;
    }
    if (t->l1 >= 0 && t->group >= 0 && t->ridge >= 0) return 0;
    PyErr_SetString(PyExc_ValueError, "l1, group, ridge: expected strengths of at least 0");
    return -1;
}

static PyObject *py_penalty(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *v, *offsets;                                    /* borrowed */
    penalty_t t = {0};
    if (!PyArg_ParseTuple(args, "OfOddd:penalty", &v, &t.center, &offsets, &t.l1, &t.group, &t.ridge)) return NULL;
    if (require_penalty(&t, v, offsets) < 0) return NULL;
    double value;
    Py_BEGIN_ALLOW_THREADS
    value = lns_penalty_f32(FLOATS(t.v), t.center, LONGS(t.offsets), t.groups, t.l1, t.group, t.ridge);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(value);
}

static PyObject *py_prox(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *v, *offsets;                                    /* borrowed */
    PyArrayObject *out = NULL;
    penalty_t t = {0};
    double step;
    if (!PyArg_ParseTuple(args, "OfOdddd:prox", &v, &t.center, &offsets, &t.l1, &t.group, &t.ridge, &step)) return NULL;
    if (require_penalty(&t, v, offsets) < 0 || !(out = NEW(1, PyArray_DIMS(t.v), NPY_FLOAT32))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_prox_f32(FLOATS(out), FLOATS(t.v), t.center, LONGS(t.offsets), t.groups, t.l1, t.group, t.ridge, step);
    Py_END_ALLOW_THREADS
    return (PyObject *)out;
}

/* ---- lns_optim: in place where an optimiser is, new arrays where a line search tries ---- */

static PyObject *py_sgd(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *velocity, *gradient;                        /* borrowed */
    double rate, momentum;
    if (!PyArg_ParseTuple(args, "OOOdd:sgd", &x, &velocity, &gradient, &rate, &momentum)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    if (velocity != Py_None && require_writeable(velocity, "velocity", count) < 0) return NULL;
    if (velocity == Py_None && momentum != 0) {
        PyErr_SetString(PyExc_ValueError, "velocity: expected an array where momentum is not 0");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    lns_sgd_f32(FLOATS((PyArrayObject *)x), velocity == Py_None ? NULL : FLOATS((PyArrayObject *)velocity),
                FLOATS((PyArrayObject *)gradient), rate, momentum, (size_t)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *first, *second, *gradient;                  /* borrowed */
    double rate, beta1, beta2, epsilon;
    Py_ssize_t iteration;
    if (!PyArg_ParseTuple(args, "OOOOddddn:adam", &x, &first, &second, &gradient, &rate, &beta1, &beta2, &epsilon,
                          &iteration)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_writeable(first, "first", count) < 0
        || require_writeable(second, "second", count) < 0
        || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    if (iteration < 1) {
        PyErr_Format(PyExc_ValueError, "iteration: expected at least 1, got %zd", iteration);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    lns_adam_f32(FLOATS((PyArrayObject *)x), FLOATS((PyArrayObject *)first), FLOATS((PyArrayObject *)second),
                 FLOATS((PyArrayObject *)gradient), rate, beta1, beta2, epsilon, (size_t)iteration, (size_t)count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gradient_step(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *gradient;                                   /* borrowed */
    PyArrayObject *out = NULL;
    double step;
    if (!PyArg_ParseTuple(args, "OOd:gradient_step", &x, &gradient, &step)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0 || !(out = NEW(1, &count, NPY_FLOAT32))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_gradient_step_f32(FLOATS(out), FLOATS((PyArrayObject *)x), FLOATS((PyArrayObject *)gradient), step,
                          (size_t)count);
    Py_END_ALLOW_THREADS
    return (PyObject *)out;
}

static PyObject *py_movement(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *to, *from, *gradient;                           /* borrowed */
    if (!PyArg_ParseTuple(args, "OOO:movement", &to, &from, &gradient)) return NULL;
    if (require(to, "to", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)to, 0);
    if (require_vector(from, "from", NPY_FLOAT32, count) < 0
        || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    double slope, square;
    Py_BEGIN_ALLOW_THREADS
    lns_movement_f32(&slope, &square, FLOATS((PyArrayObject *)to), FLOATS((PyArrayObject *)from),
                     FLOATS((PyArrayObject *)gradient), (size_t)count);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("dd", slope, square);
}

static PyObject *py_cosine(PyObject *Py_UNUSED(self), PyObject *args)
{
    double rate, floor;
    Py_ssize_t at, total;
    if (!PyArg_ParseTuple(args, "ddnn:cosine", &rate, &floor, &at, &total)) return NULL;
    if (total < 1 || at < 0 || at > total) {
        PyErr_Format(PyExc_ValueError, "at, total: expected 0 <= at <= total and total >= 1, got %zd, %zd", at, total);
        return NULL;
    }
    return PyFloat_FromDouble(lns_cosine(rate, floor, (size_t)at, (size_t)total));
}

PyMethodDef optim_methods[] = {
    {"penalty", py_penalty, METH_VARARGS, "penalty(v, center, offsets, l1, group, ridge) -> value"},
    {"prox", py_prox, METH_VARARGS, "prox(v, center, offsets, l1, group, ridge, step) -> new v"},
    {"sgd", py_sgd, METH_VARARGS, "sgd(x, velocity, gradient, rate, momentum): x and velocity change in place"},
    {"adam", py_adam, METH_VARARGS,
     "adam(x, first, second, gradient, rate, beta1, beta2, epsilon, iteration): in place"},
    {"gradient_step", py_gradient_step, METH_VARARGS, "gradient_step(x, gradient, step) -> x - step * gradient"},
    {"movement", py_movement, METH_VARARGS,
     "movement(to, from, gradient) -> <gradient, to - from>, |to - from|^2"},
    {"cosine", py_cosine, METH_VARARGS, "cosine(rate, floor, at, total) -> rate at that iteration"},
    {NULL, NULL, 0, NULL},
};
