/*
 * The accelerator: encoding, calling, decoding, and the callbacks of guests, in C.
 *
 * Rule 1: it means what asyncwasm/_ffi/{direct,fiber}.py mean, and nothing more. Whatever is not
 * a plain int or float is left to Python ("detour", or a value handed back for the slow way).
 * Rule 2: it is handed the addresses of the library's functions and knows none of its headers.
 * Rule 3: the callbacks that run on a fiber call no Python, except `action`, which is ours.
 * Rule 4: everything runs with the GIL held but the clock, and guests that have let go of it; a Gate
 * is a flag that the GIL guards.
 * Rule 5: a plain host function is an ordinary one of the library's. Called by a guest on its
 * thread's own stack it runs there (Activation); called on a fiber it calls the store's `waiter`,
 * the one function that suspends. Python code runs outside of the store in both cases.
 *
 * A noun, a header; what is included first knows nothing of what comes later.
 */
#include "_c/base.h"
#include "_c/gate.h"
#include "_c/values.h"
#include "_c/callee.h"
#include "_c/clock.h"
#include "_c/host.h"
#include "_c/head.h"
#include "_c/answering.h"
#include "_c/fiber.h"
#include "_c/instances.h"
#include "_c/activation.h"
#include "_c/direct.h"
#include "_c/quick.h"
#include "_c/tasks.h"

/* bind((addresses), done, import, yielded, answered, abandon, maker of externs) */
static PyObject *
bind(PyObject *module, PyObject *args)
{
    PyObject *addresses, *done, *import, *yielded, *answered, *left, *maker;
    void *at[FUNCTIONS];
    if (!PyArg_ParseTuple(args, "O!OOOOOO", &PyTuple_Type, &addresses, &done, &import, &yielded,
                          &answered, &left, &maker)) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(addresses) != (Py_ssize_t)(sizeof(at) / sizeof(at[0]))) {
        PyErr_SetString(PyExc_ValueError, "the wrong number of functions");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(addresses); index++) {
        at[index] = take_address(PyTuple_GET_ITEM(addresses, index));
        if (at[index] == NULL) {
            return NULL;
        }
    }
    memcpy(&api, at, sizeof(at)); /* in the order in which it names them */
    Py_XSETREF(state_done, Py_NewRef(done));
    Py_XSETREF(state_import, Py_NewRef(import));
    Py_XSETREF(state_yielded, Py_NewRef(yielded));
    Py_XSETREF(state_answered, Py_NewRef(answered));
    Py_XSETREF(abandoned, Py_NewRef(left));
    Py_XSETREF(make_extern, Py_NewRef(maker));
    Py_RETURN_NONE;
}

/* bind_calls(context variable, types, resume): what says for whom a host function runs */
static PyObject *
bind_calls(PyObject *module, PyObject *args)
{
    PyObject *variable, *type, *on_stack, *function;
    if (!PyArg_ParseTuple(args, "O!OOO", &PyContextVar_Type, &variable, &type, &on_stack,
                          &function)) {
        return NULL;
    }
    Py_XSETREF(current_call, Py_NewRef(variable));
    Py_XSETREF(call_type, Py_NewRef(type));
    Py_XSETREF(stack_call_type, Py_NewRef(on_stack));
    Py_XSETREF(resume, Py_NewRef(function));
    Py_RETURN_NONE;
}

static PyObject *
forked(PyObject *module, PyObject *unused)
{
    generation++;
    beats = PyThread_allocate_lock(); /* a thread that is not there may have held the other one */
    Py_RETURN_NONE;
}

/* callbacks() -> addresses of what is called for imports, for plain hosts, and by the waiter */
static PyObject *
callbacks(PyObject *module, PyObject *unused)
{
    return Py_BuildValue("KKK", (unsigned long long)(uintptr_t)on_import,
                         (unsigned long long)(uintptr_t)on_host,
                         (unsigned long long)(uintptr_t)on_wait);
}

/* has_room(frames) -> whether the recursion limit allows for that many Python frames */
static PyObject *
has_room(PyObject *module, PyObject *frames)
{
    long wanted = PyLong_AsLong(frames);
    if (wanted == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return PyBool_FromLong(is_room(wanted));
}

/* has_stack(gate) -> whether a call of its guests fits on the stack of this thread */
static PyObject *
has_stack_for(PyObject *module, PyObject *gate)
{
    if (!PyObject_TypeCheck(gate, &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a gate");
        return NULL;
    }
    return PyBool_FromLong(fits((Gate *)gate));
}

static PyObject *
note_deadlines(PyObject *module, PyObject *unused)
{
    deadlines = true;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"note_deadlines", note_deadlines, METH_NOARGS, NULL},
    {"has_room", has_room, METH_O, NULL},
    {"has_stack", has_stack_for, METH_O, NULL},
    {"innermost", innermost, METH_O, NULL},
    {"stack_call", find_stack_call, METH_O, NULL},
    {"instantiate_linked", (PyCFunction)(void (*)(void))instantiate_linked, METH_FASTCALL, NULL},
    {"bind", bind, METH_VARARGS, NULL},
    {"at_ease", at_ease, METH_NOARGS, NULL},
    {"loop_at_ease", loop_at_ease, METH_NOARGS, NULL},
    {"bind_calls", bind_calls, METH_VARARGS, NULL},
    {"bind_tasks", bind_tasks, METH_VARARGS, NULL},
    {"build", (PyCFunction)(void (*)(void))build, METH_FASTCALL, NULL},
    {"find_export", (PyCFunction)(void (*)(void))find_export, METH_FASTCALL, NULL},
    {"find_function", (PyCFunction)(void (*)(void))find_function, METH_FASTCALL, NULL},
    {"forked", forked, METH_NOARGS, NULL},
    {"callbacks", callbacks, METH_NOARGS, NULL},
    {"instantiate", (PyCFunction)(void (*)(void))instantiate, METH_FASTCALL, NULL},
    {NULL},
};

static int
fill(PyObject *module)
{
    PyTypeObject *types[] = {&Gate_Type,  &Direct_Type, &Host_Type,
                             &Fiber_Type, &Clock_Type,  &Quick_Type};
    for (size_t index = 0; index < sizeof(types) / sizeof(types[0]); index++) {
        if (PyModule_AddType(module, types[index]) < 0) {
            return -1;
        }
    }
    const struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&name_active, "active"},     {&name_begun, "begun"},       {&name_check, "check"},
        {&name_cancel_scope, "cancel_scope"},
        {&name_children, "_children"}, {&name_current, "_current"}, {&name_detour, "_detour"},
        {&name_gone, "_gone"},        {&name_greenlet, "greenlet"}, {&name_outcome, "outcome"},
        {&name_over, "over"},         {&name_pointer, "pointer"},   {&name_popitem, "popitem"},
        {&name_stopped, "_stopped"},
    };
    for (size_t index = 0; index < sizeof(names) / sizeof(names[0]); index++) {
        *names[index].name = PyUnicode_InternFromString(names[index].text);
        if (*names[index].name == NULL) {
            return -1;
        }
    }
    if (beats == NULL) {
        beats = PyThread_allocate_lock();
        if (beats == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0 ||
                   PyModule_AddIntConstant(module, "HEAD_BYTES", sizeof(head)) < 0 ||
                   PyModule_AddIntConstant(module, "FUNCTION", offsetof(head, function)) < 0 ||
                   PyModule_AddIntConstant(module, "MOST_VALUES", MOST_VALUES) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asyncwasm._speedups",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
