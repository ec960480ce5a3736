/* Binding of lns_transport. */
#include "py_checks.h"

#include "lns_transport.h"

static PyObject *py_mean_shift(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyArrayObject *bias = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:mean_shift", "x", "y") < 0 || !(bias = new_column_results(s.x))) return NULL;
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(s.type, lns_mean_shift, DOUBLES(bias), DATA(s.x), DATA(s.y), s.n, s.m, s.columns, s.threads);
    Py_END_ALLOW_THREADS
    return (PyObject *)bias;
}

static PyObject *py_gaussian_map(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *result = NULL;
    PyArrayObject *weight = NULL, *bias = NULL;
    samples_t s;
    if (take_samples(&s, args, "OOi:gaussian_map", "x", "y") < 0) goto done;
    if (!(weight = new_column_results(s.x)) || !(bias = new_column_results(s.x))) goto done;
    double *w = DOUBLES(weight), *b = DOUBLES(bias);
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(s.type, lns_gaussian_map, w, b, DATA(s.x), DATA(s.y), s.n, s.m, s.columns, s.threads);
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
    size_t each = CALL_REAL(s.type, lns_linear_map_scratch, s.n, s.m);
    if (!(weight = new_column_results(s.x)) || !(bias = new_column_results(s.x))) goto done;
    if (!(scratch = tile_scratch(each, (npy_intp)s.columns, &s.threads))) goto done;
    double *w = DOUBLES(weight), *b = DOUBLES(bias);
    void *work = on_line(scratch);
    Py_BEGIN_ALLOW_THREADS
    CALL_REAL(s.type, lns_linear_map, w, b, DATA(s.x), DATA(s.y), s.n, s.m, s.columns, work, s.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, weight, bias);
done:
    PyMem_Free(scratch);
    Py_XDECREF(weight); Py_XDECREF(bias);
    return result;
}

PyMethodDef transport_methods[] = {
    {"mean_shift", py_mean_shift, METH_VARARGS, "mean_shift(x, y, threads) -> bias"},
    {"gaussian_map", py_gaussian_map, METH_VARARGS, "gaussian_map(x, y, threads) -> weight, bias"},
    {"linear_map", py_linear_map, METH_VARARGS, "linear_map(x, y, threads) -> weight, bias"},
    {NULL, NULL, 0, NULL},
};
