/* Binding of lns_update, whose vectors change in place. */
#include "py_checks.h"

#include "lns_update.h"

static PyObject *py_sgd(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *velocity, *gradient;                        /* borrowed */
    double rate, momentum;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOddi:sgd", &x, &velocity, &gradient, &rate, &momentum, &threads)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0) return NULL;
    if (velocity != Py_None && require_writeable(velocity, "velocity", count) < 0) return NULL;
    if (require_threads(threads) < 0) return NULL;
    if (velocity == Py_None && momentum != 0) {
        PyErr_SetString(PyExc_ValueError, "velocity: expected an array where momentum is not 0");
        return NULL;
    }
    if (require_apart((PyObject *[]){x, velocity, gradient}, (const char *[]){"x", "velocity", "gradient"}, 2, 3) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_sgd_f32(FLOATS((PyArrayObject *)x), velocity == Py_None ? NULL : FLOATS((PyArrayObject *)velocity),
                FLOATS((PyArrayObject *)gradient), rate, momentum, (size_t)count, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *first, *second, *gradient;                  /* borrowed */
    double rate, beta1, beta2, epsilon, decay;
    Py_ssize_t iteration;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOdddddni:adam", &x, &first, &second, &gradient, &rate, &beta1, &beta2, &epsilon,
                          &decay, &iteration, &threads)) return NULL;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) return NULL;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0);
    if (require_writeable(x, "x", count) < 0 || require_writeable(first, "first", count) < 0
        || require_writeable(second, "second", count) < 0
        || require_vector(gradient, "gradient", NPY_FLOAT32, count) < 0 || require_threads(threads) < 0) return NULL;
    if (count % 2) {
        PyErr_Format(PyExc_ValueError, "x: expected [weights, biases], as many of each, got %zd", (Py_ssize_t)count);
        return NULL;
    }
    if (iteration < 1) {
        PyErr_Format(PyExc_ValueError, "iteration: expected at least 1, got %zd", iteration);
        return NULL;
    }
    if (require_apart((PyObject *[]){x, first, second, gradient},
                      (const char *[]){"x", "first", "second", "gradient"}, 3, 4) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_adam_f32(FLOATS((PyArrayObject *)x), FLOATS((PyArrayObject *)first), FLOATS((PyArrayObject *)second),
                 FLOATS((PyArrayObject *)gradient), rate, beta1, beta2, epsilon, decay, (size_t)iteration,
                 (size_t)count, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
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

PyMethodDef update_methods[] = {
    {"sgd", py_sgd, METH_VARARGS,
     "sgd(x, velocity, gradient, rate, momentum, threads): x and velocity change in place"},
    {"adam", py_adam, METH_VARARGS,
     "adam(x, first, second, gradient, rate, beta1, beta2, epsilon, decay, iteration, threads): in place"},
    {"cosine", py_cosine, METH_VARARGS, "cosine(rate, floor, at, total) -> rate at that iteration"},
    {NULL, NULL, 0, NULL},
};
