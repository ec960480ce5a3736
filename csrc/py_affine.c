/* Binding of lns_affine: h is (batch, tokens, dim), or (batch, dim, tokens) where channels come first. */
#include "py_checks.h"

#include "lns_affine.h"

static int require_affine(PyObject *h, PyObject *scale, PyObject *pool, int first, int threads)
{
    if (require(h, "h", NPY_FLOAT32, 3) < 0 || require_threads(threads) < 0) return -1;
    npy_intp *shape = PyArray_DIMS((PyArrayObject *)h), pool_shape[2] = {shape[0], shape[first ? 2 : 1]};
    if (require_vector(scale, "scale", NPY_FLOAT32, shape[first ? 1 : 2]) < 0) return -1;
    return require_shape(pool, "pool", NPY_FLOAT32, 2, pool_shape);
}

static PyObject *py_affine_pool(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *h, *scale, *shift, *pool, *result = NULL;       /* all but result borrowed */
    PyArrayObject *out = NULL, *pooled = NULL;
    int first, threads;
    if (!PyArg_ParseTuple(args, "OOOOpi:affine_pool", &h, &scale, &shift, &pool, &first, &threads)) goto done;
    if (require_affine(h, scale, pool, first, threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)h;
    npy_intp *shape = PyArray_DIMS(in), dim = shape[first ? 1 : 2], tokens = shape[first ? 2 : 1];
    npy_intp pooled_shape[2] = {shape[0], dim};
    if (require_vector(shift, "shift", NPY_FLOAT32, dim) < 0) goto done;
    if (!(out = NEW(3, shape, NPY_FLOAT32)) || !(pooled = NEW(2, pooled_shape, NPY_FLOAT32))) goto done;
    const float *w = FLOATS((PyArrayObject *)scale), *b = FLOATS((PyArrayObject *)shift);
    const float *at = FLOATS((PyArrayObject *)pool);
    Py_BEGIN_ALLOW_THREADS
    (first ? lns_affine_first_f32 : lns_affine_last_f32)(FLOATS(out), FLOATS(pooled), FLOATS(in), w, b, at,
                                                         (size_t)shape[0], (size_t)tokens, (size_t)dim, threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(2, out, pooled);
done:
    Py_XDECREF(out); Py_XDECREF(pooled);
    return result;
}

static PyObject *py_affine_pool_grad(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *grad_out, *grad_pooled, *h, *scale, *pool, *result = NULL;      /* all but result borrowed */
    PyArrayObject *grad_h = NULL, *grad_scale = NULL, *grad_shift = NULL;
    float *scratch = NULL;
    int first, threads;
    if (!PyArg_ParseTuple(args, "OOOOOpi:affine_pool_grad", &grad_out, &grad_pooled, &h, &scale, &pool, &first,
                          &threads)) goto done;
    if (require_affine(h, scale, pool, first, threads) < 0) goto done;
    PyArrayObject *in = (PyArrayObject *)h;
    npy_intp *shape = PyArray_DIMS(in), dim = shape[first ? 1 : 2], tokens = shape[first ? 2 : 1];
    npy_intp pooled_shape[2] = {shape[0], dim};
    if (require_shape(grad_pooled, "grad_pooled", NPY_FLOAT32, 2, pooled_shape) < 0) goto done;
    if (grad_out != Py_None && require_shape(grad_out, "grad_out", NPY_FLOAT32, 3, shape) < 0) goto done;
    if (!(grad_h = NEW(3, shape, NPY_FLOAT32)) || !(grad_scale = NEW(1, &dim, NPY_FLOAT32))
        || !(grad_shift = NEW(1, &dim, NPY_FLOAT32))) goto done;
    if (!(scratch = PyMem_Malloc(2 * (size_t)(shape[0] * dim) * sizeof *scratch))) {
        PyErr_NoMemory();
        goto done;
    }
    const float *from_out = grad_out == Py_None ? NULL : FLOATS((PyArrayObject *)grad_out);
    const float *from_pooled = FLOATS((PyArrayObject *)grad_pooled);
    const float *w = FLOATS((PyArrayObject *)scale), *at = FLOATS((PyArrayObject *)pool);
    Py_BEGIN_ALLOW_THREADS
    (first ? lns_affine_first_grad_f32 : lns_affine_last_grad_f32)(
        FLOATS(grad_h), FLOATS(grad_scale), FLOATS(grad_shift), from_out, from_pooled, FLOATS(in), w, at, scratch,
        (size_t)shape[0], (size_t)tokens, (size_t)dim, threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(3, grad_h, grad_scale, grad_shift);
done:
    PyMem_Free(scratch);
    Py_XDECREF(grad_h); Py_XDECREF(grad_scale); Py_XDECREF(grad_shift);
    return result;
}

PyMethodDef affine_methods[] = {
    {"affine_pool", py_affine_pool, METH_VARARGS,
     "affine_pool(h, scale, shift, pool, channels_first, threads) -> out, pooled"},
    {"affine_pool_grad", py_affine_pool_grad, METH_VARARGS,
     "affine_pool_grad(grad_out, grad_pooled, h, scale, pool, channels_first, threads)"
     " -> grad_h, grad_scale, grad_shift"},
    {NULL, NULL, 0, NULL},
};
