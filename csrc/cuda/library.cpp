// What makes the library importable; the operators register themselves when it loads, their schemas are Python's.
#include <Python.h>

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", "segops' CUDA operators.", -1, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
