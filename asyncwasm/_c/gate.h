/* Gate: a store, who is inside of it, and what those who want in have to know. */

/* A thread that waits to get in; on its stack. */
typedef struct Waiter {
    struct Waiter *next;
} Waiter;

typedef struct {
    PyObject_HEAD
    bool inside;
    bool open;
    bool awaited; /* somebody waits until the guest that runs on a thread is outside */
    bool waits;   /* guests may wait inside, for each other */
    bool closing; /* the store is to be deleted by whoever leaves it last */
    bool detour;  /* a direct call must look closer before it enters */
    bool guarded; /* guests of the store can hold references */
    bool hosted;  /* guests of the store can call host functions */
    bool lingers; /* an instruction of its guests can take long */
    bool near;    /* the guest yields at the next tick */
    bool pending; /* whoever is inside has to finish the closing */
    bool quick;   /* an awaited call may begin before anybody knows about it */
    bool soon;    /* the deadline comes at the next tick, or has passed */
    bool roomless; /* a guest is inside whose call has no operation, which would have the room */
    bool waitable; /* there is a `waiter` */
    bool yields;  /* the native store asks what to do when the deadline has come */
    struct Waiter *first; /* those who wait to get in: nobody else does before them */
    int views;    /* of its memory; the native store lives on for them */
    int standing; /* calls on the stack of the thread `handed_by` that run their hosts */
    uint64_t stride;    /* ticks that a guest runs on for after it has yielded */
    uint64_t waiter[2]; /* the function that suspends its fiber, for hosts */
    size_t stack_bytes; /* that a call on a thread's own stack needs there */
    char *top;          /* where the outermost of these calls has begun, or NULL */
    void *store, *context;
    PyObject *engine;  /* is kept alive */
    PyObject *clock;   /* a Clock, or NULL while nothing can be called */
    PyObject *futures; /* dict: pointer -> what must outlive it; NULL until there is one */
    PyObject *answering; /* what runs a host before anybody knows of the call, or NULL */
    PyObject *dropped; /* list of fibers, with what they own, to be freed by who is inside; likewise */
    uint64_t generation;
    unsigned long owner;     /* the thread that came in last to run Python code inside */
    unsigned long handed_by; /* the thread that goes on with it */
    PyObject *handed;        /* weak reference to a fiber that waits for its operation, or NULL */
} Gate;

static PyTypeObject Gate_Type;

/*
 * Whether one more call fits on the stack of this thread. What guests may take is counted from where
 * the outermost one has begun, so that hosts in between must not have used up much of it.
 */
static bool
fits(const Gate *self)
{
    char place;
    return has_stack(self->stack_bytes) &&
           (self->top == NULL ||
            (uintptr_t)self->top - (uintptr_t)&place < self->stack_bytes / 3);
}

static PyObject *
Gate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Gate *self = (Gate *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->generation = generation;
        self->stride = NEAR;
    }
    return (PyObject *)self;
}

/* Make the native store, with (memory, table, instances, tables, memories) at most. */
static int
open_gate(Gate *self, PyObject *engine, uint64_t ticks, PyObject *limits, Py_ssize_t stack_bytes)
{
    int64_t most[5];
    if (!PyTuple_Check(limits) || PyTuple_GET_SIZE(limits) != 5) {
        PyErr_SetString(PyExc_TypeError, "expected a tuple of five limits");
        return -1;
    }
    for (int index = 0; index < 5; index++) {
        most[index] = PyLong_AsLongLong(PyTuple_GET_ITEM(limits, index));
        if (most[index] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (self->store != NULL || api.store_new == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a store is made once, and after `bind`");
        return -1;
    }
    PyObject *address = PyObject_GetAttr(engine, name_pointer);
    void *native = address == NULL ? NULL : take_address(address);
    Py_XDECREF(address);
    if (native == NULL) {
        return -1;
    }
    Py_XSETREF(self->engine, Py_NewRef(engine));
    self->stack_bytes = (size_t)stack_bytes;
    self->store = api.store_new(native, NULL, NULL);
    self->context = api.store_context(self->store);
    api.set_deadline(self->context, ticks);
    api.store_limit(self->store, most[0], most[1], most[2], most[3], most[4]);
    self->open = true;
    return 0;
}

/* Gate(engine, ticks to the deadline, limits, stack bytes) */
static int
Gate_init(Gate *self, PyObject *args, PyObject *kwargs)
{
    PyObject *engine, *limits;
    unsigned long long ticks;
    Py_ssize_t stack_bytes;
    if (!PyArg_ParseTuple(args, "OKOn", &engine, &ticks, &limits, &stack_bytes)) {
        return -1;
    }
    return open_gate(self, engine, ticks, limits, stack_bytes);
}

/*
 * Wait until nobody is inside, first come first served; false with an exception if a signal
 * handler has raised one. The caller goes in before it lets go of the GIL.
 */
static bool
wait_outside(Gate *self)
{
    if (!self->inside && self->first == NULL) {
        return true;
    }
    bool passed = true;
    Waiter own = {NULL}, **at = &self->first;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = &own;
    while (passed && (self->inside || self->first != &own)) {
        Py_BEGIN_ALLOW_THREADS
        nap();
        Py_END_ALLOW_THREADS
        passed = PyErr_CheckSignals() == 0;
    }
    for (at = &self->first; *at != &own; at = &(*at)->next) {
    }
    *at = own.next;
    return passed;
}

/* Go inside, to run a guest and no Python code. Nobody is there. */
static inline void
go_inside(Gate *self, bool roomless)
{
    self->inside = true;
    self->roomless = roomless;
    self->owner = 0; /* else who was there before would take itself for inside */
}

static PyObject *
Gate_enter(Gate *self, PyObject *unused)
{
    if (!wait_outside(self)) {
        return NULL;
    }
    self->inside = true;
    self->owner = PyThread_get_thread_ident();
    Py_RETURN_TRUE;
}

/* Delete what there still is of the store; the caller is inside. -1 with an exception. */
static int
finish(Gate *self)
{
    bool ours = self->generation == generation;
    self->open = false;
    PyObject *futures = self->futures;
    while (futures != NULL && PyDict_GET_SIZE(futures)) { /* newest first */
        PyObject *item = PyObject_CallMethodNoArgs(futures, name_popitem);
        void *future = item == NULL ? NULL : PyLong_AsVoidPtr(PyTuple_GET_ITEM(item, 0));
        if (future == NULL) {
            Py_XDECREF(item);
            return -1;
        }
        if (ours) {
            Py_BEGIN_ALLOW_THREADS
            api.delete(future);
            Py_END_ALLOW_THREADS
        }
        Py_DECREF(item); /* what must outlive the future */
    }
    void *store = self->store;
    if (store == NULL || self->views) {
        return 0;
    }
    self->store = NULL;
    if (ours) {
        Py_BEGIN_ALLOW_THREADS
        api.store_delete(store);
        Py_END_ALLOW_THREADS
    }
    return 0;
}

/* If somebody is inside, or on its stack: whoever that is comes back here when it leaves. */
static int
close_gate(Gate *self)
{
    self->closing = self->pending = true;
    int done = 0;
    while (self->pending && !self->inside && !self->standing && done == 0) {
        self->pending = false;
        self->inside = true;
        done = finish(self);
        self->inside = false;
    }
    return done;
}

static PyObject *
Gate_close(Gate *self, PyObject *unused)
{
    Py_INCREF(self); /* what a future has kept may hold the last reference */
    int done = close_gate(self);
    Py_DECREF(self);
    if (done < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void
Gate_finalize(PyObject *self)
{
    if (((Gate *)self)->store == NULL) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (close_gate((Gate *)self) < 0) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_Restore(type, value, traceback);
}

/* Leave, and finish a close that found somebody inside; keeps an exception that is on its way. */
static int
leave(Gate *self)
{
    self->inside = false;
    if (!self->pending) {
        return 0;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int done = close_gate(self);
    if (type == NULL) {
        return done;
    }
    if (done < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyErr_Restore(type, value, traceback);
    return 0;
}

static PyObject *
Gate_exit(Gate *self, PyObject *const *args, Py_ssize_t count)
{
    if (leave(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
Gate_acquire(Gate *self, PyObject *const *args, Py_ssize_t count)
{
    if (self->inside) {
        Py_RETURN_FALSE;
    }
    self->inside = true;
    Py_RETURN_TRUE;
}

static PyObject *
Gate_release(Gate *self, PyObject *unused)
{
    if (leave(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
Gate_mine(Gate *self, PyObject *unused)
{
    return PyBool_FromLong(self->inside && self->owner == PyThread_get_thread_ident());
}

static PyObject *
Gate_locked(Gate *self, PyObject *unused)
{
    return PyBool_FromLong(self->inside || self->first != NULL);
}

/* set_waiter((function)): what suspends the fiber of a guest that has called a host */
static PyObject *
Gate_set_waiter(Gate *self, PyObject *args)
{
    unsigned long long first, second;
    if (!PyArg_ParseTuple(args, "(KK)", &first, &second)) {
        return NULL;
    }
    self->waiter[0] = first;
    self->waiter[1] = second;
    self->waitable = true;
    Py_RETURN_NONE;
}

static void *on_deadline(void *, void *, uint64_t *, uint8_t *);

/* Have guests ask what to do when their deadline has come, from now on. The caller is inside. */
static void
begin_yielding(Gate *self)
{
    if (!self->yields) {
        self->yields = true;
        api.store_on_deadline(self->store, on_deadline, self, NULL);
    }
}

static PyObject *
Gate_begin_yielding(Gate *self, PyObject *unused)
{
    begin_yielding(self);
    Py_RETURN_NONE;
}

static PyMethodDef Gate_methods[] = {
    {"begin_yielding", (PyCFunction)Gate_begin_yielding, METH_NOARGS, NULL},
    {"set_waiter", (PyCFunction)Gate_set_waiter, METH_VARARGS, NULL},
    {"__enter__", (PyCFunction)Gate_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))Gate_exit, METH_FASTCALL, NULL},
    {"acquire", (PyCFunction)(void (*)(void))Gate_acquire, METH_FASTCALL, NULL},
    {"release", (PyCFunction)Gate_release, METH_NOARGS, NULL},
    {"locked", (PyCFunction)Gate_locked, METH_NOARGS, NULL},
    {"mine", (PyCFunction)Gate_mine, METH_NOARGS, NULL},
    {"close", (PyCFunction)Gate_close, METH_NOARGS, NULL},
    {NULL},
};

static PyObject *
Gate_get_lock(Gate *self, void *unused)
{
    return Py_NewRef((PyObject *)self);
}

static PyObject *
Gate_get_ours(Gate *self, void *unused)
{
    return PyBool_FromLong(self->generation == generation);
}

static PyObject *
Gate_get_pointer(Gate *self, void *unused)
{
    return PyLong_FromVoidPtr(self->store);
}

static PyObject *
Gate_get_context(Gate *self, void *unused)
{
    return PyLong_FromVoidPtr(self->context);
}

/* The futures; borrowed, NULL with an exception. */
static PyObject *
futures_of(Gate *self)
{
    if (self->futures == NULL) {
        self->futures = PyDict_New();
    }
    return self->futures;
}

static PyObject *
Gate_get_futures(Gate *self, void *unused)
{
    return Py_XNewRef(futures_of(self));
}

static PyObject *
Gate_get_dropped(Gate *self, void *unused)
{
    if (self->dropped == NULL) {
        self->dropped = PyList_New(0);
    }
    return Py_XNewRef(self->dropped);
}

static PyTypeObject Clock_Type;

static PyObject *
Gate_get_clock(Gate *self, void *unused)
{
    return Py_NewRef(self->clock == NULL ? Py_None : self->clock);
}

static int
Gate_set_clock(Gate *self, PyObject *clock, void *unused)
{
    if (clock == NULL || !Py_IS_TYPE(clock, &Clock_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a clock");
        return -1;
    }
    Py_XSETREF(self->clock, Py_NewRef(clock));
    return 0;
}

static PyGetSetDef Gate_getset[] = {
    {"clock", (getter)Gate_get_clock, (setter)Gate_set_clock, NULL, NULL},
    {"context", (getter)Gate_get_context, NULL, NULL, NULL},
    {"dropped", (getter)Gate_get_dropped, NULL, NULL, NULL},
    {"futures", (getter)Gate_get_futures, NULL, NULL, NULL},
    {"lock", (getter)Gate_get_lock, NULL, NULL, NULL},
    {"ours", (getter)Gate_get_ours, NULL, NULL, NULL},
    {"pointer", (getter)Gate_get_pointer, NULL, NULL, NULL},
    {NULL},
};

static PyMemberDef Gate_members[] = {
    {"awaited", T_BOOL, offsetof(Gate, awaited), 0, NULL},
    {"closing", T_BOOL, offsetof(Gate, closing), 0, NULL},
    {"detour", T_BOOL, offsetof(Gate, detour), 0, NULL},
    {"guarded", T_BOOL, offsetof(Gate, guarded), 0, NULL},
    {"hosted", T_BOOL, offsetof(Gate, hosted), 0, NULL},
    {"lingers", T_BOOL, offsetof(Gate, lingers), 0, NULL},
    {"near", T_BOOL, offsetof(Gate, near), 0, NULL},
    {"pending", T_BOOL, offsetof(Gate, pending), 0, NULL},
    {"quick", T_BOOL, offsetof(Gate, quick), 0, NULL},
    {"open", T_BOOL, offsetof(Gate, open), READONLY, NULL},
    {"roomless", T_BOOL, offsetof(Gate, roomless), 0, NULL},
    {"standing", T_INT, offsetof(Gate, standing), READONLY, NULL},
    {"soon", T_BOOL, offsetof(Gate, soon), 0, NULL},
    {"stride", T_ULONGLONG, offsetof(Gate, stride), 0, NULL},
    {"views", T_INT, offsetof(Gate, views), 0, NULL},
    {"waitable", T_BOOL, offsetof(Gate, waitable), READONLY, NULL},
    {"waits", T_BOOL, offsetof(Gate, waits), 0, NULL},
    {"yields", T_BOOL, offsetof(Gate, yields), 0, NULL},
    {"answering", T_OBJECT, offsetof(Gate, answering), READONLY, NULL},
    {"engine", T_OBJECT, offsetof(Gate, engine), READONLY, NULL},
    {"handed", T_OBJECT, offsetof(Gate, handed), 0, NULL},
    {"handed_by", T_ULONG, offsetof(Gate, handed_by), 0, NULL},
    {NULL},
};

static int
Gate_traverse(Gate *self, visitproc visit, void *arg)
{
    Py_VISIT(self->answering);
    Py_VISIT(self->clock);
    Py_VISIT(self->dropped);
    Py_VISIT(self->engine);
    Py_VISIT(self->futures);
    Py_VISIT(self->handed);
    return 0;
}

static int
Gate_clear(Gate *self)
{
    Py_CLEAR(self->handed);
    return 0;
}

static void
Gate_dealloc(Gate *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    Gate_clear(self);
    Py_CLEAR(self->answering);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->dropped);
    Py_CLEAR(self->futures);
    Py_CLEAR(self->engine);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Gate_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Gate",
    .tp_basicsize = sizeof(Gate),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = Gate_new,
    .tp_init = (initproc)Gate_init,
    .tp_dealloc = (destructor)Gate_dealloc,
    .tp_finalize = Gate_finalize,
    .tp_traverse = (traverseproc)Gate_traverse,
    .tp_clear = (inquiry)Gate_clear,
    .tp_methods = Gate_methods,
    .tp_getset = Gate_getset,
    .tp_members = Gate_members,
};
