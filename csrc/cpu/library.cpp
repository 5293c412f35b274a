// What makes the library importable; the operators register themselves when it loads, their schemas are Python's.
#include <Python.h>

#include "segops/isa.h"

static PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(segops::isa_name()); }

static PyMethodDef methods[] = {{"isa", isa, METH_NOARGS, "The instruction set the kernels chose."}, {nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "segops' CPU operators.", -1, methods};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
