/* Binding of lns_affine. h is (batch, tokens, dim), or (batch, dim, tokens) where channels come first, in float32,
 * float64, float16, or int16 for the bits of bfloat16, which NumPy lacks; maps are float32, or float64 for float64 h. */
#include "py_checks.h"

#include "lns_affine.h"

/* As CALL_REAL, for every type that activations come in. */
#define CALL_STORE(type, function, ...)                                                                                \
    ((type) == NPY_FLOAT16 ? function##_f16(__VA_ARGS__)                                                               \
     : (type) == NPY_INT16 ? function##_bf16(__VA_ARGS__) : CALL_REAL(type, function, __VA_ARGS__))

typedef struct {
    npy_intp *shape, batch, tokens, dim;
    int store, real, first, threads;                          /* type numbers of h and of all but h and its kind */
} affine_t;

/* An array of any type that activations come in; *real becomes the type of their maps. Returns its type, or -1. */
static int require_activations(PyObject *h, int *real)
{
    PyObject *got = (PyObject *)Py_TYPE(h);
    if (PyArray_Check(h)) {
        int type = PyArray_TYPE((PyArrayObject *)h);
        *real = type == NPY_FLOAT64 ? NPY_FLOAT64 : NPY_FLOAT32;
        if (type == NPY_FLOAT32 || type == NPY_FLOAT64 || type == NPY_FLOAT16 || type == NPY_INT16)
            return require(h, "h", type, 3) < 0 ? -1 : type;
        got = (PyObject *)PyArray_DESCR((PyArrayObject *)h);
    }
    PyErr_Format(PyExc_TypeError, "h: expected an array of float32, float64, float16 or int16 (bfloat16), got %R", got);
    return -1;
}

static int require_affine(affine_t *t, PyObject *h, PyObject *scale, PyObject *pool)
{
    if ((t->store = require_activations(h, &t->real)) < 0 || require_threads(t->threads) < 0) return -1;
    t->shape = PyArray_DIMS((PyArrayObject *)h);
    t->batch = t->shape[0];
    t->tokens = t->shape[t->first ? 2 : 1];
    t->dim = t->shape[t->first ? 1 : 2];
    npy_intp pool_shape[2] = {t->batch, t->tokens};
    if (require_vector(scale, "scale", t->real, t->dim) < 0) return -1;
    return require_shape(pool, "pool", t->real, 2, pool_shape);
}

static PyObject *py_affine_pool(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *h, *scale, *shift, *pool, *result = NULL;       /* all but result borrowed */
    PyArrayObject *out = NULL, *pooled = NULL;
    affine_t t;
    if (!PyArg_ParseTuple(args, "OOOOpi:affine_pool", &h, &scale, &shift, &pool, &t.first, &t.threads)) goto done;
    if (require_affine(&t, h, scale, pool) < 0 || require_vector(shift, "shift", t.real, t.dim) < 0) goto done;
    npy_intp pooled_shape[2] = {t.batch, t.dim};
    if (!(out = NEW(3, t.shape, t.store)) || !(pooled = NEW(2, pooled_shape, t.real))) goto done;
    size_t batch = (size_t)t.batch, tokens = (size_t)t.tokens, dim = (size_t)t.dim;
    void *o = DATA(out), *p = DATA(pooled);
    const void *x = DATA(h), *w = DATA(scale), *b = DATA(shift), *at = DATA(pool);
    Py_BEGIN_ALLOW_THREADS
    if (t.first) CALL_STORE(t.store, lns_affine_first, o, p, x, w, b, at, batch, tokens, dim, t.threads);
    else CALL_STORE(t.store, lns_affine_last, o, p, x, w, b, at, batch, tokens, dim, t.threads);
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
    void *scratch = NULL;
    affine_t t;
    if (!PyArg_ParseTuple(args, "OOOOOpi:affine_pool_grad", &grad_out, &grad_pooled, &h, &scale, &pool, &t.first,
                          &t.threads)) goto done;
    if (require_affine(&t, h, scale, pool) < 0) goto done;
    npy_intp pooled_shape[2] = {t.batch, t.dim};
    if (require_shape(grad_pooled, "grad_pooled", t.real, 2, pooled_shape) < 0) goto done;
    if (grad_out != Py_None && require_shape(grad_out, "grad_out", t.store, 3, t.shape) < 0) goto done;
    if (!(grad_h = NEW(3, t.shape, t.store)) || !(grad_scale = NEW(1, &t.dim, t.real))
        || !(grad_shift = NEW(1, &t.dim, t.real))) goto done;
    size_t batch = (size_t)t.batch, tokens = (size_t)t.tokens, dim = (size_t)t.dim;
    if (!(scratch = scratch_bytes(2, (size_t)PyArray_NBYTES((PyArrayObject *)grad_pooled), 1))) goto done;
    void *to_h = DATA(grad_h), *to_scale = DATA(grad_scale), *to_shift = DATA(grad_shift);
    const void *g = grad_out == Py_None ? NULL : DATA(grad_out), *g_pooled = DATA(grad_pooled);
    const void *x = DATA(h), *w = DATA(scale), *at = DATA(pool);
    Py_BEGIN_ALLOW_THREADS
    if (t.first)
        CALL_STORE(t.store, lns_affine_first_grad, to_h, to_scale, to_shift, g, g_pooled, x, w, at, scratch, batch,
                   tokens, dim, t.threads);
    else
        CALL_STORE(t.store, lns_affine_last_grad, to_h, to_scale, to_shift, g, g_pooled, x, w, at, scratch, batch,
                   tokens, dim, t.threads);
    Py_END_ALLOW_THREADS
    result = PyTuple_Pack(3, grad_h, grad_scale, grad_shift);
done:
    PyMem_Free(scratch);
    Py_XDECREF(grad_h); Py_XDECREF(grad_scale); Py_XDECREF(grad_shift);
    return result;
}

static int require_support(PyObject *support, npy_intp count, npy_intp dim)
{
    if (require_vector(support, "support", NPY_INT64, count) < 0) return -1;
    const int64_t *at = LONGS((PyArrayObject *)support);
    for (npy_intp k = 0; k < count; k++)
        if (at[k] < (k ? at[k - 1] + 1 : 0) || at[k] >= dim) {
            PyErr_Format(PyExc_ValueError, "support: expected an ascent from 0 to at most %zd", (Py_ssize_t)dim - 1);
            return -1;
        }
    return 0;
}

static PyObject *py_affine_sparse(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *h, *support, *scale, *shift;                    /* borrowed */
    int store, real, threads;
    if (!PyArg_ParseTuple(args, "OOOOi:affine_sparse", &h, &support, &scale, &shift, &threads)) return NULL;
    if ((store = require_activations(h, &real)) < 0 || require_threads(threads) < 0) return NULL;
    if (PyArray_FailUnlessWriteable((PyArrayObject *)h, "h") < 0 || require(scale, "scale", real, 1) < 0) return NULL;
    npy_intp *shape = PyArray_DIMS((PyArrayObject *)h), count = PyArray_DIM((PyArrayObject *)scale, 0);
    if (require_vector(shift, "shift", real, count) < 0 || require_support(support, count, shape[1]) < 0) return NULL;
    if (require_apart((PyObject *[]){h, support, scale, shift}, (const char *[]){"h", "support", "scale", "shift"}, 1,
                      4) < 0) return NULL;
    size_t outer = (size_t)shape[0], dim = (size_t)shape[1], inner = (size_t)shape[2];
    void *x = DATA(h);
    const void *at = DATA(support), *w = DATA(scale), *b = DATA(shift);
    Py_BEGIN_ALLOW_THREADS
    CALL_STORE(store, lns_affine_sparse, x, at, w, b, outer, dim, inner, (size_t)count, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef affine_methods[] = {
    {"affine_pool", py_affine_pool, METH_VARARGS,
     "affine_pool(h, scale, shift, pool, channels_first, threads) -> out, pooled"},
    {"affine_pool_grad", py_affine_pool_grad, METH_VARARGS,
     "affine_pool_grad(grad_out, grad_pooled, h, scale, pool, channels_first, threads)"
     " -> grad_h, grad_scale, grad_shift"},
    {"affine_sparse", py_affine_sparse, METH_VARARGS,
     "affine_sparse(h (outer, dim, inner), support, scale, shift, threads): changes h"},
    {NULL, NULL, 0, NULL},
};
