/* The extension module. Its functions are in the other files: py_x.c binds what lns_x.h declares. Bindings check,
 * allocate, take pointers, release the GIL and call. */
#define LNS_IMPORTS_NUMPY
#include "py_checks.h"

#include "lns_port.h"
#include "lns_quadratic.h"

static int module_exec(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    PyMethodDef *tables[] = {
        sort_methods, wasserstein_methods, null_methods, rank_methods, transport_methods, affine_methods, prox_methods,
        update_methods, product_methods, quadratic_methods, ridge_methods,
    };
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++)
        if (PyModule_AddFunctions(module, tables[k]) < 0) return -1;
    if (PyModule_AddIntConstant(module, "INNER_STEPS", LNS_INNER_STEPS) < 0) return -1;
    return PyModule_AddObjectRef(module, "HAS_OPENMP", LNS_HAS_OPENMP ? Py_True : Py_False);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    GIL_SLOT
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_core", .m_doc = "The C kernels of lineas, bound to NumPy arrays.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
