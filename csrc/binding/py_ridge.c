/* Binding of what the default recipe's loss adds and leaves out. */
#include "py_checks.h"

#include "lns_ridge.h"

#define FLOATS_OF(object) FLOATS((PyArrayObject *)(object))
#define DOUBLES_OF(object) DOUBLES((PyArrayObject *)(object))

/* Scratch for sums over so many entries. */
static double *parts_for(npy_intp count) { return scratch_bytes(lns_ridge_blocks((size_t)count), 3 * sizeof(double), 1); }

static PyObject *py_ridge(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *gradient, *x, *stretch, *cross, *shift, *result = NULL;             /* borrowed, but for the result */
    double strength, value, *parts = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOOdi:ridge", &gradient, &x, &stretch, &cross, &shift, &strength, &threads)) goto done;
    if (require(x, "x", NPY_FLOAT32, 1) < 0) goto done;
    npy_intp count = PyArray_DIM((PyArrayObject *)x, 0), units = count / 2;
    if (count % 2) {
        PyErr_Format(PyExc_ValueError, "x: expected [weights, biases], as many of each, got %zd", (Py_ssize_t)count);
        goto done;
    }
    if (require_writeable(gradient, "gradient", count) < 0
        || require_vector(stretch, "stretch", NPY_FLOAT64, units) < 0
        || require_vector(cross, "cross", NPY_FLOAT64, units) < 0
        || require_vector(shift, "shift", NPY_FLOAT64, units) < 0 || require_threads(threads) < 0
        || require_apart((PyObject *[]){gradient, x, stretch, cross, shift},
                         (const char *[]){"gradient", "x", "stretch", "cross", "shift"}, 1, 5) < 0) goto done;
    if (!(parts = parts_for(units))) goto done;
    Py_BEGIN_ALLOW_THREADS
    value = lns_ridge(FLOATS_OF(gradient), FLOATS_OF(x), DOUBLES_OF(stretch), DOUBLES_OF(cross), DOUBLES_OF(shift),
                      strength, (size_t)units, parts, threads);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble(value);
done:
    PyMem_Free(parts);
    return result;
}

static PyObject *py_dot(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a, *b, *result = NULL;
    double value, *parts = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOi:dot", &a, &b, &threads)) goto done;
    if (require(a, "a", NPY_FLOAT64, 1) < 0) goto done;
    npy_intp count = PyArray_DIM((PyArrayObject *)a, 0);
    if (require_vector(b, "b", NPY_FLOAT64, count) < 0 || require_threads(threads) < 0 || !(parts = parts_for(count)))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    value = lns_dot(DOUBLES_OF(a), DOUBLES_OF(b), (size_t)count, parts, threads);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble(value);
done:
    PyMem_Free(parts);
    return result;
}

static PyObject *py_move_sums(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *to, *from, *after, *before, *result = NULL;
    double sums[3], *parts = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOi:move_sums", &to, &from, &after, &before, &threads)) goto done;
    if (require(to, "to", NPY_FLOAT32, 1) < 0) goto done;
    npy_intp count = PyArray_DIM((PyArrayObject *)to, 0);
    if (require_vector(from, "from", NPY_FLOAT32, count) < 0 || require_vector(after, "after", NPY_FLOAT32, count) < 0
        || require_vector(before, "before", NPY_FLOAT32, count) < 0 || require_threads(threads) < 0
        || !(parts = parts_for(count))) goto done;
    Py_BEGIN_ALLOW_THREADS
    lns_move_sums(sums, FLOATS_OF(to), FLOATS_OF(from), FLOATS_OF(after), FLOATS_OF(before), (size_t)count, parts,
                  threads);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("ddd", sums[0], sums[1], sums[2]);
done:
    PyMem_Free(parts);
    return result;
}

static PyObject *py_scale_columns(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *slopes, *factor;
    int threads;
    if (!PyArg_ParseTuple(args, "OOi:scale_columns", &slopes, &factor, &threads)) return NULL;
    if (require(slopes, "slopes", NPY_FLOAT32, 2) < 0 || PyArray_FailUnlessWriteable((PyArrayObject *)slopes, "slopes") < 0)
        return NULL;
    npy_intp n = PyArray_DIM((PyArrayObject *)slopes, 0), units = PyArray_DIM((PyArrayObject *)slopes, 1);
    if (require_vector(factor, "factor", NPY_FLOAT64, units) < 0 || require_threads(threads) < 0
        || require_apart((PyObject *[]){slopes, factor}, (const char *[]){"slopes", "factor"}, 1, 2) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lns_scale_columns(FLOATS_OF(slopes), DOUBLES_OF(factor), (size_t)n, (size_t)units, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_largest(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *x, *result = NULL;
    double *parts = NULL;
    float most;
    int threads;
    if (!PyArg_ParseTuple(args, "Oi:largest", &x, &threads)) goto done;
    if (require(x, "x", NPY_FLOAT32, 2) < 0 || require_threads(threads) < 0) goto done;
    npy_intp count = PyArray_SIZE((PyArrayObject *)x);
    if (!(parts = parts_for(count))) goto done;
    Py_BEGIN_ALLOW_THREADS
    most = lns_largest(FLOATS_OF(x), (size_t)count, parts, threads);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble((double)most);
done:
    PyMem_Free(parts);
    return result;
}

PyMethodDef ridge_methods[] = {
    {"ridge", py_ridge, METH_VARARGS,
     "ridge(gradient, x, stretch, cross, shift, strength, threads) -> its value; gradient in place"},
    {"dot", py_dot, METH_VARARGS, "dot(a, b, threads) -> float"},
    {"move_sums", py_move_sums, METH_VARARGS,
     "move_sums(to, from, after, before, threads) -> |move|^2, move . change, |change|^2"},
    {"scale_columns", py_scale_columns, METH_VARARGS, "scale_columns(slopes, factor, threads): slopes in place"},
    {"largest", py_largest, METH_VARARGS, "largest(x, threads) -> the largest |x|"},
    {NULL, NULL, 0, NULL},
};
