/*
 * The accelerator: encoding, calling, decoding, and the callbacks of guests, in C.
 *
 * Rule 1: it means what asyncwasm/_ffi/{direct,fiber}.py mean, and nothing more. Whatever is not
 * a plain int or float is left to Python ("detour", or a value handed back for the slow way).
 * Rule 2: it is handed the addresses of the library's functions and knows none of its headers.
 * Rule 3: the callbacks that run on a fiber call no Python, except `action`, which is ours.
 * Rule 4: everything but the guest and the clock runs with the GIL held; a Gate is a flag that the
 * GIL guards.
 * Rule 5: a plain host function is an ordinary one of the library's. Called by a guest on its
 * thread's own stack it runs there (Activation); called on a fiber it calls the store's `waiter`,
 * the one function that suspends. Python code runs outside of the store in both cases.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#if defined(_WIN32)
#include <windows.h>
#endif
#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

#define INTERFACE 13 /* accelerator.py knows it too: raise both with each change of what is here */
#define VAL_BYTES 32
#define RAW_BYTES 16
#define MOST_VALUES 16
#define INSTANCE_BYTES 16
#define EXTERN_BYTES 32

static struct {
    void *(*call_unchecked)(void *, const void *, void *, size_t, void **);
    bool (*poll)(void *);
    void *(*call_async)(void *, const void *, const void *, size_t, void *, size_t, void **,
                        void **);
    void (*delete)(void *);
    void (*set_deadline)(void *, uint64_t);
    void (*store_on_deadline)(void *, void *(*)(void *, void *, uint64_t *, uint8_t *), void *,
                              void (*)(void *));
    void *(*store_new)(void *, void *, void *);
    void *(*store_context)(void *);
    void (*store_limit)(void *, int64_t, int64_t, int64_t, int64_t, int64_t);
    void (*store_delete)(void *);
    void *(*instance_new)(void *, void *, const void *, size_t, void *, void **);
    bool (*export_get)(void *, const void *, const char *, size_t, void *);
    void *(*linked_new)(const void *, void *, void *, void **);
    void *(*trap_new)(const char *, size_t);
    void (*trap_delete)(void *);
    void *(*error_new)(const char *);
    void (*error_delete)(void *);
    void (*increment_epoch)(void *);
} api;

#define FUNCTIONS 18
_Static_assert(sizeof(api) == FUNCTIONS * sizeof(void *), "bind() fills it as an array");

#define NEAR 1 /* ticks; handles.py knows them too */
#define FAR ((uint64_t)1 << 60)
#define OLD 1  /* what a streak can be, in ticks; quick.py knows them too */
#define OVER 2

static uint64_t generation; /* counts forks */

static PyObject *state_done, *state_import, *state_yielded, *state_answered;
static PyObject *current_call; /* the context variable, and what it is set to while hosts run */
static PyObject *call_type;
static PyObject *stack_call_type; /* the same for a call on its thread's own stack */
static PyObject *resume; /* makes the awaitable of a coroutine that has begun */
static PyObject *name_active, *name_begun, *name_check, *name_children, *name_current, *name_detour,
    *name_gone, *name_greenlet, *name_outcome, *name_over, *name_pointer, *name_popitem,
    *name_stopped;

/* seconds that may jump by a few milliseconds, as cheap as the platform has them */
static double
coarse_seconds(void)
{
    struct timespec now;
#if defined(CLOCK_MONOTONIC_COARSE)
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#elif defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &now);
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double
fine_seconds(void)
{
    struct timespec now;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &now);
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#if defined(_WIN32) && !defined(CREATE_WAITABLE_TIMER_HIGH_RESOLUTION)
#define CREATE_WAITABLE_TIMER_HIGH_RESOLUTION 2
#endif

static void
sleep_milliseconds(int milliseconds)
{
#if defined(_WIN32)
    LARGE_INTEGER due = {.QuadPart = -10000LL * milliseconds};
    HANDLE timer = CreateWaitableTimerExW(NULL, NULL, CREATE_WAITABLE_TIMER_HIGH_RESOLUTION,
                                          TIMER_ALL_ACCESS);
    if (timer != NULL && SetWaitableTimer(timer, &due, 0, NULL, NULL, FALSE)) {
        WaitForSingleObject(timer, INFINITE);
    }
    else { /* an old system, on which this takes longer */
        Sleep((DWORD)milliseconds);
    }
    if (timer != NULL) {
        CloseHandle(timer);
    }
#else
    struct timespec moment = {0, 1000000L * milliseconds};
    nanosleep(&moment, NULL);
#endif
}

/* a moment, for others to run in */
static void
nap(void)
{
#if defined(_WIN32)
    Sleep(0);
#else
    struct timespec moment = {0, 20000};
    nanosleep(&moment, NULL);
#endif
}

/* What this thread does, in one place: looking for it takes a moment. */
static THREAD_LOCAL struct {
    char *stack_end; /* the lowest address; the first one there is, if unknown */
    struct head *polled; /* the fiber that is being polled */
    struct Activation *running; /* the innermost call on the thread's own stack */
} here;

/* ---- the thread's own stack ---- */

static char *
find_stack_end(void)
{
#if defined(_WIN32)
    ULONG_PTR low, high;
    GetCurrentThreadStackLimits(&low, &high);
    return (char *)low;
#elif defined(__APPLE__)
    pthread_t self = pthread_self();
    return (char *)pthread_get_stackaddr_np(self) - pthread_get_stacksize_np(self);
#elif defined(__linux__)
    pthread_attr_t attributes;
    void *low = NULL;
    size_t bytes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        if (pthread_attr_getstack(&attributes, &low, &bytes) != 0) {
            low = NULL;
        }
        pthread_attr_destroy(&attributes);
    }
    return low == NULL ? (char *)1 : (char *)low;
#else
    return (char *)1;
#endif
}

/* Whether so many bytes are left on it. */
static bool
has_stack(size_t bytes)
{
    char place;
    if (here.stack_end == NULL) {
        here.stack_end = find_stack_end();
    }
    return (uintptr_t)&place > (uintptr_t)here.stack_end + bytes;
}

/* An address of the library's; NULL with an exception if it is none. */
static void *
take_address(PyObject *number)
{
    void *address = PyLong_AsVoidPtr(number);
    if (address == NULL && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "expected an address, got 0");
    }
    return address;
}

/* ---- Gate: a store, who is inside of it, and what those who want in have to know ---- */

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

/* ---- values ---- */

/* Write a plain number of the type that `letter` stands for; false: it is something else. */
static inline bool
encode(char letter, PyObject *value, unsigned char *to)
{
    switch (letter) {
    case 'i': {
        int overflow;
        if (!PyLong_CheckExact(value)) {
            return false;
        }
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow || number < INT32_MIN || number > (long long)UINT32_MAX) {
            return false;
        }
        uint32_t bits = (uint32_t)number;
        memcpy(to, &bits, 4);
        return true;
    }
    case 'q': {
        int overflow;
        if (!PyLong_CheckExact(value)) {
            return false;
        }
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            return false;
        }
        memcpy(to, &number, 8);
        return true;
    }
    case 'f':
    case 'd': {
        double number;
        if (PyFloat_CheckExact(value)) {
            number = PyFloat_AS_DOUBLE(value);
        }
        else if (PyLong_CheckExact(value)) {
            number = PyLong_AsDouble(value);
            if (number == -1.0 && PyErr_Occurred()) {
                PyErr_Clear();
                return false;
            }
        }
        else {
            return false;
        }
        if (letter == 'd') {
            memcpy(to, &number, 8);
        }
        else {
            float rounded = (float)number;
            memcpy(to, &rounded, 4);
        }
        return true;
    }
    }
    return false;
}

static inline PyObject *
decode(char letter, const unsigned char *from)
{
    switch (letter) {
    case 'i': {
        int32_t number;
        memcpy(&number, from, 4);
        return PyLong_FromLong(number);
    }
    case 'q': {
        int64_t number;
        memcpy(&number, from, 8);
        return PyLong_FromLongLong(number);
    }
    case 'f': {
        float number;
        memcpy(&number, from, 4);
        return PyFloat_FromDouble(number);
    }
    case 'd': {
        double number;
        memcpy(&number, from, 8);
        return PyFloat_FromDouble(number);
    }
    }
    return PyBytes_FromStringAndSize((const char *)from, 16);
}

/* The types of a function's parameters and results, a letter each. */
typedef struct {
    Py_ssize_t parameters, results;
    char letters[2 * MOST_VALUES]; /* the results' begin at MOST_VALUES */
} Signature;

static int
take_letters(PyObject *text, char *to, Py_ssize_t *count)
{
    Py_ssize_t length;
    const char *letters = PyUnicode_AsUTF8AndSize(text, &length);
    if (letters == NULL) {
        return -1;
    }
    if (length > MOST_VALUES) {
        PyErr_Format(PyExc_ValueError, "at most %d values, got %zd", MOST_VALUES, length);
        return -1;
    }
    memcpy(to, letters, length);
    *count = length;
    return 0;
}

static int
take_signature(Signature *self, PyObject *parameters, PyObject *results)
{
    if (take_letters(parameters, self->letters, &self->parameters) < 0) {
        return -1;
    }
    return take_letters(results, self->letters + MOST_VALUES, &self->results);
}

static PyObject *
decode_results(const Signature *self, const unsigned char *from, size_t stride)
{
    const char *letters = self->letters + MOST_VALUES;
    if (self->results == 0) {
        Py_RETURN_NONE;
    }
    if (self->results == 1) {
        return decode(letters[0], from);
    }
    PyObject *values = PyTuple_New(self->results);
    for (Py_ssize_t index = 0; values != NULL && index < self->results; index++) {
        PyObject *value = decode(letters[index], from + stride * index);
        if (value == NULL) {
            Py_CLEAR(values);
            break;
        }
        PyTuple_SET_ITEM(values, index, value);
    }
    return values;
}

static const unsigned char kinds[] = {['i'] = 0, ['q'] = 1, ['f'] = 2, ['d'] = 3, ['v'] = 4};

/* ---- Callee: a function of a store, as both ways of calling it begin ---- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Gate *gate;
    uint64_t function[2];
    Signature signature;
} Callee;

/* Read function, parameters and results of a callee from args[1] to args[3]. */
static bool
take_callee(Callee *self, PyObject *const *args)
{
    if (!PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != 2 ||
        !PyUnicode_CheckExact(args[2]) || !PyUnicode_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "expected two words of a function, and letters");
        return false;
    }
    for (int index = 0; index < 2; index++) {
        self->function[index] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(args[1], index));
    }
    return !PyErr_Occurred() && take_signature(&self->signature, args[2], args[3]) == 0;
}

/* Whether a thread of this process can enter the store, and nobody is in there. */
static inline bool
is_free(const Gate *gate)
{
    return !(gate->inside || gate->first != NULL || gate->closing || gate->generation != generation);
}

/* Take the exception that is on its way, with its traceback. */
static PyObject *
take_raised(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

/* Raise the exception that somebody has made, if it has been made. */
static void
raise_made(PyObject *exc)
{
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

/*
 * ---- Clock: what advances the epoch of an engine, on a thread of its own; see clock.py ----
 *
 * The thread knows nothing of Python, so that it ticks while a guest holds the GIL. What both sides
 * change is changed under `beats`; the flags, a byte each, are said without it, as in clock.py.
 */

static PyThread_type_lock beats; /* one for all clocks, held for as long as a tick takes */

#define TICK_SECONDS 0.001 /* clock.py knows it too */
#define IDLE_TICKS 100
#define REST_SECONDS 5
#define LATE_TICKS 1000 /* from which on the process must have been stopped, and its guests too */

typedef struct {
    PyObject_HEAD
    volatile bool needed, parked, unseen;
    bool ticking; /* there is a thread */
    bool ending, posted;
    volatile int manual, holders;
    volatile unsigned long long ticks;
    double ticked; /* when the last tick was due */
    void **engines;
    size_t count;
    PyObject *handles; /* list of what keeps the engines, or NULL */
    PyThread_type_lock wake; /* what a parked thread waits for: released once if `posted` */
    uint64_t generation;
} Clock;

static THREAD_LOCAL struct {
    unsigned long long last, since;
    bool watched;
} turn;

static PyObject *
Clock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Clock *self = (Clock *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->parked = true;
        self->generation = generation;
        self->wake = PyThread_allocate_lock();
        if (self->wake == NULL) {
            Py_DECREF(self);
            return PyErr_NoMemory();
        }
        PyThread_acquire_lock(self->wake, WAIT_LOCK);
    }
    return (PyObject *)self;
}

/* Rest until somebody wakes the clock; false if nobody has for long. Holds `beats`. */
static bool
rest(Clock *self)
{
    PyThread_release_lock(beats);
    PyLockStatus woken =
        PyThread_acquire_lock_timed(self->wake, (PY_TIMEOUT_T)REST_SECONDS * 1000000, 0);
    PyThread_acquire_lock(beats, WAIT_LOCK);
    if (woken != PY_LOCK_ACQUIRED && self->posted) { /* just now */
        PyThread_acquire_lock(self->wake, WAIT_LOCK);
        woken = PY_LOCK_ACQUIRED;
    }
    if (woken == PY_LOCK_ACQUIRED) {
        self->posted = false;
    }
    return woken == PY_LOCK_ACQUIRED || !self->parked;
}

/* Tick once, and as often as it should have happened before. Holds `beats`. */
static void
beat(Clock *self)
{
    double now = fine_seconds(), due = (double)(long long)((now - self->ticked) / TICK_SECONDS);
    if (due >= 0 && due <= LATE_TICKS) {
        self->ticked += due * TICK_SECONDS;
    }
    else {
        due = 1;
        self->ticked = now;
    }
    self->ticks += (unsigned long long)due;
    if (self->manual && !self->unseen) {
        return;
    }
    for (size_t index = 0; index < self->count; index++) {
        for (double done = 0; done < due; done++) {
            api.increment_epoch(self->engines[index]);
        }
    }
}

/* The thread. It ends when it has rested for long, or is told to. */
static void
run_clock(void *argument)
{
    Clock *self = argument;
    int idle = 0;
    PyThread_acquire_lock(beats, WAIT_LOCK);
    while (!self->ending) {
        if (self->parked) {
            if (!rest(self)) {
                break;
            }
            continue;
        }
        PyThread_release_lock(beats);
        sleep_milliseconds(1);
        PyThread_acquire_lock(beats, WAIT_LOCK);
        if (self->ending) {
            break;
        }
        beat(self);
        if (self->needed || self->holders) {
            self->needed = false;
            idle = 0;
        }
        else if (++idle >= IDLE_TICKS) {
            idle = 0;
            self->parked = true;
            /* Who has not seen that yet has said `needed`, which will be seen here a tick later. */
            PyThread_release_lock(beats);
            sleep_milliseconds(1);
            PyThread_acquire_lock(beats, WAIT_LOCK);
            if (self->parked && !self->ending) {
                beat(self);
                self->parked = !(self->needed || self->holders);
            }
        }
    }
    self->ticking = false; /* whoever waits for that goes on when `beats` is free */
    PyThread_release_lock(beats);
}

/* Have the thread look at what it is to do. Holds `beats`. */
static void
post(Clock *self)
{
    if (!self->posted) {
        self->posted = true;
        PyThread_release_lock(self->wake);
    }
}

/*
 * Tick from when the thread has woken up; false if there can be none. Without engines it stays parked:
 * nobody must take it for one that ends what holds the GIL.
 */
static bool
wake_clock(Clock *self)
{
    bool possible = true;
    if (!self->parked || self->count == 0 || self->generation != generation) {
        return true;
    }
    PyThread_acquire_lock(beats, WAIT_LOCK);
    if (!self->ticking && !self->ending) {
        possible = PyThread_start_new_thread(run_clock, self) != PYTHREAD_INVALID_THREAD_ID;
        self->ticking = possible; /* else whoever needs it next tries again */
    }
    if (self->ticking && self->parked && !self->ending && self->count) {
        self->ticked = fine_seconds();
        self->parked = false;
        post(self);
    }
    PyThread_release_lock(beats);
    return possible;
}

static PyObject *
Clock_wake(Clock *self, PyObject *unused)
{
    if (!wake_clock(self)) {
        PyErr_SetString(PyExc_RuntimeError, "can't start the thread of a clock");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* End the thread, wait for that, and touch no engine again. */
static void
stop_clock(Clock *self)
{
    if (self->generation != generation) {
        return; /* the thread has stayed behind in another process */
    }
    PyThread_acquire_lock(beats, WAIT_LOCK);
    self->parked = true;
    self->count = 0;
    while (self->ticking) { /* nobody starts one while it is ending, but behind somebody else's end */
        self->ending = true;
        post(self);
        PyThread_release_lock(beats);
        Py_BEGIN_ALLOW_THREADS
        nap();
        Py_END_ALLOW_THREADS
        PyThread_acquire_lock(beats, WAIT_LOCK);
    }
    self->ending = false;
    self->count = 0; /* whoever has come with one meanwhile has come too late */
    PyThread_release_lock(beats);
    Py_CLEAR(self->handles);
}

static PyObject *
Clock_stop(Clock *self, PyObject *unused)
{
    stop_clock(self);
    Py_RETURN_NONE;
}

static void
Clock_dealloc(Clock *self)
{
    if (self->wake != NULL) {
        stop_clock(self);
        if (self->generation == generation) {
            PyThread_free_lock(self->wake);
        }
    }
    Py_CLEAR(self->handles);
    PyMem_RawFree(self->engines);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* add(engine): advance it, too, until `stop` */
static PyObject *
Clock_add(Clock *self, PyObject *handle)
{
    PyObject *pointer = PyObject_GetAttr(handle, name_pointer);
    void *engine = pointer == NULL ? NULL : take_address(pointer);
    Py_XDECREF(pointer);
    if (engine == NULL) {
        return NULL;
    }
    if (self->handles == NULL) {
        self->handles = PyList_New(0);
    }
    if (self->handles == NULL || PyList_Append(self->handles, handle) < 0) {
        return NULL;
    }
    PyThread_acquire_lock(beats, WAIT_LOCK);
    void **engines = PyMem_RawRealloc(self->engines, (self->count + 1) * sizeof(void *));
    if (engines != NULL) {
        self->engines = engines;
        engines[self->count++] = engine;
    }
    PyThread_release_lock(beats);
    if (engines == NULL) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

/* Seconds by which the next tick is late, or will come after the last. */
static PyObject *
Clock_late(Clock *self, PyObject *unused)
{
    double late = fine_seconds() - self->ticked;
    return PyFloat_FromDouble(late >= 0 && late < LATE_TICKS * TICK_SECONDS ? late : 0.0);
}

static int
streak(Clock *self, bool ran)
{
    if (self->manual) {
        return 0;
    }
    unsigned long long now = self->ticks;
    if (!ran && now - turn.last > 1) { /* a pause, or another clock */
        turn.since = now;
        turn.watched = false;
    }
    turn.last = now;
    if (!turn.watched) {
        return now > turn.since ? OLD : 0;
    }
    return now - turn.since >= OVER ? OVER : 0;
}

static PyObject *
Clock_watched(Clock *self, PyObject *unused)
{
    turn.watched = true;
    Py_RETURN_NONE;
}

static PyObject *
Clock_new_turn(Clock *self, PyObject *unused)
{
    turn.last = turn.since = self->ticks;
    turn.watched = false;
    Py_RETURN_NONE;
}

static PyObject *
Clock_streak(Clock *self, PyObject *const *args, Py_ssize_t count)
{
    return PyLong_FromLong(streak(self, count > 0 && args[0] == Py_True));
}

static PyMethodDef Clock_methods[] = {
    {"add", (PyCFunction)Clock_add, METH_O, NULL},
    {"late", (PyCFunction)Clock_late, METH_NOARGS, NULL},
    {"new_turn", (PyCFunction)Clock_new_turn, METH_NOARGS, NULL},
    {"stop", (PyCFunction)Clock_stop, METH_NOARGS, NULL},
    {"streak", (PyCFunction)(void (*)(void))Clock_streak, METH_FASTCALL, NULL},
    {"wake", (PyCFunction)Clock_wake, METH_NOARGS, NULL},
    {"watched", (PyCFunction)Clock_watched, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef Clock_members[] = {
    {"holders", T_INT, offsetof(Clock, holders), 0, NULL},
    {"manual", T_INT, offsetof(Clock, manual), 0, NULL},
    {"needed", T_BOOL, offsetof(Clock, needed), 0, NULL},
    {"parked", T_BOOL, offsetof(Clock, parked), READONLY, NULL},
    {"ticks", T_ULONGLONG, offsetof(Clock, ticks), READONLY, NULL},
    {"unseen", T_BOOL, offsetof(Clock, unseen), 0, NULL},
    {NULL},
};

static PyTypeObject Clock_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Clock",
    .tp_basicsize = sizeof(Clock),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Clock_new,
    .tp_dealloc = (destructor)Clock_dealloc,
    .tp_methods = Clock_methods,
    .tp_members = Clock_members,
};

/* ---- Host: a Python function with plain numbers ---- */

typedef struct {
    PyObject_HEAD
    PyObject *callable;
    bool suspending; /* what it returns is awaited */
    Signature signature;
} Host;

static PyTypeObject Host_Type;

static PyObject *
Host_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *callable, *parameters, *results;
    int suspending;
    if (!PyArg_ParseTuple(args, "OUUp", &callable, &parameters, &results, &suspending)) {
        return NULL;
    }
    Host *self = (Host *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->callable = Py_NewRef(callable);
    self->suspending = suspending;
    if (take_signature(&self->signature, parameters, results) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
Host_traverse(Host *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callable);
    return 0;
}

static int
Host_clear(Host *self)
{
    Py_CLEAR(self->callable);
    return 0;
}

static void
Host_dealloc(Host *self)
{
    PyObject_GC_UnTrack(self);
    Host_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Host_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Host",
    .tp_basicsize = sizeof(Host),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Host_new,
    .tp_dealloc = (destructor)Host_dealloc,
    .tp_traverse = (traverseproc)Host_traverse,
    .tp_clear = (inquiry)Host_clear,
};

/* ---- Fiber: one activation on a stack of its own ---- */

/* The head of a fiber's memory; the values follow. fiber.py knows TRAP to ARGUMENTS. */
typedef struct head {
    uint64_t trap, error;
    uint8_t flag;
    uint8_t dispatching, finished, requested, guarded;
    uint64_t function[2];
    uint64_t host, arguments, results, trap_out;
    void *future;
    Gate *gate; /* borrowed: the future keeps it */
    struct head *child;
    PyObject *fiber; /* borrowed; set while an action waits */
} head;

typedef struct {
    bool (*callback)(void *);
    void *env;
    void (*finalizer)(void *);
} continuation;

typedef struct {
    PyObject_HEAD
    PyObject *memory; /* bytes, used as raw memory; the store's handle holds it too */
    PyObject *handle, *child, *action, *failure, *weakrefs;
    head *head;
} Fiber;

static PyTypeObject Fiber_Type;

static bool
on_ready(void *env)
{
    return ((head *)env)->flag != 0;
}

static bool
on_step(void *env)
{
    head *self = env;
    head *child = self->child;
    if (child != NULL) {
        head *previous = here.polled;
        here.polled = child;
        child->guarded = self->guarded;
        child->finished = api.poll(child->future);
        here.polled = previous;
        return false;
    }
    if (self->fiber != NULL) {
        PyGILState_STATE state = PyGILState_Ensure();
        Fiber *fiber = (Fiber *)self->fiber;
        PyObject *action = fiber->action;
        self->fiber = NULL;
        fiber->action = NULL;
        if (action != NULL) {
            PyObject *done = PyObject_CallNoArgs(action);
            if (done == NULL) {
                Py_XSETREF(fiber->failure, take_raised());
                self->flag = 0;
            }
            else {
                Py_DECREF(done);
            }
            Py_DECREF(action);
        }
        PyGILState_Release(state);
    }
    return self->flag != 0;
}

/* Have the fiber wait until its request, of which everything else is known, has been answered. */
static void
on_wait(void *env, void *caller, const void *arguments, size_t count, void *results,
        size_t result_count, void **trap, continuation *next)
{
    head *self = here.polled;
    self->flag = 0;
    self->requested = 1;
    self->dispatching = self->guarded;
    self->trap_out = (uint64_t)(uintptr_t)trap;
    next->callback = self->guarded ? on_step : on_ready;
    next->env = self;
    next->finalizer = NULL;
}

/* The guest has called a host function that is not plain. */
static void
on_import(void *env, void *caller, const void *arguments, size_t count, void *results,
          size_t result_count, void **trap, continuation *next)
{
    head *self = here.polled;
    self->host = (uint64_t)(uintptr_t)env;
    self->arguments = (uint64_t)(uintptr_t)arguments;
    self->results = (uint64_t)(uintptr_t)results;
    on_wait(env, caller, arguments, count, results, result_count, trap, next);
}

static void *
new_trap(const char *text)
{
    return api.trap_new(text, strlen(text));
}

static void *host_on_stack(struct Activation *, size_t, unsigned char *);

/* The guest has called a plain host function, with raw values; returns a trap, or NULL. */
static void *
on_host(void *env, void *caller, unsigned char *values, size_t count)
{
    head *self = here.polled;
    if (self == NULL) {
        return here.running == NULL ? new_trap("a host function was called by nobody")
                               : host_on_stack(here.running, (size_t)(uintptr_t)env, values);
    }
    Gate *gate = self->gate;
    if (!gate->waitable) {
        return new_trap("a host function was called before one could wait for it");
    }
    self->host = (uint64_t)(uintptr_t)env;
    self->arguments = self->results = (uint64_t)(uintptr_t)values;
    void *trap = NULL;
    /* Comes back with what the host has failed with, or because the fiber is unwound. */
    void *error = api.call_unchecked(gate->context, gate->waiter, NULL, 0, &trap);
    if (error != NULL) {
        api.error_delete(error);
        return new_trap("unwound");
    }
    return trap;
}

static PyObject *
Fiber_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *handle;
    Py_ssize_t payload;
    if (!PyArg_ParseTuple(args, "O!n", &Gate_Type, &handle, &payload)) {
        return NULL;
    }
    Fiber *self = (Fiber *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->memory = PyBytes_FromStringAndSize(NULL, sizeof(head) + payload);
    if (self->memory == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    self->head = (head *)PyBytes_AS_STRING(self->memory);
    memset(self->head, 0, sizeof(head) + payload);
    self->head->gate = (Gate *)handle;
    self->handle = Py_NewRef(handle);
    return (PyObject *)self;
}

static int
Fiber_traverse(Fiber *self, visitproc visit, void *arg)
{
    Py_VISIT(self->handle);
    Py_VISIT(self->child);
    Py_VISIT(self->action);
    Py_VISIT(self->failure);
    return 0;
}

static int
Fiber_clear(Fiber *self)
{
    Py_CLEAR(self->child);
    Py_CLEAR(self->action);
    Py_CLEAR(self->failure);
    return 0;
}

static PyObject *abandoned; /* called with a fiber that dies with a future */

static void
Fiber_finalize(PyObject *object)
{
    Fiber *self = (Fiber *)object;
    if (self->head != NULL && self->head->future != NULL && abandoned != NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyObject *done = PyObject_CallOneArg(abandoned, object);
        if (done == NULL) {
            PyErr_WriteUnraisable(object);
        }
        Py_XDECREF(done);
        PyErr_Restore(type, value, traceback);
    }
}

static void
Fiber_dealloc(Fiber *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Fiber_clear(self);
    Py_CLEAR(self->handle);
    Py_CLEAR(self->memory);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int
Fiber_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Fiber *self = (Fiber *)object;
    return PyBuffer_FillInfo(view, object, self->head, PyBytes_GET_SIZE(self->memory), 0, flags);
}

static PyBufferProcs Fiber_buffer = {.bf_getbuffer = Fiber_getbuffer};

/* start_call(context, (function), arguments, results) -> future */
static PyObject *
Fiber_begin_call(Fiber *self, PyObject *args)
{
    unsigned long long context, first, second;
    Py_ssize_t parameters, results;
    if (!PyArg_ParseTuple(args, "K(KK)nn", &context, &first, &second, &parameters, &results)) {
        return NULL;
    }
    head *own = self->head;
    unsigned char *values = (unsigned char *)(own + 1);
    own->function[0] = first;
    own->function[1] = second;
    own->future =
        api.call_async((void *)(uintptr_t)context, own->function, values, parameters,
                       values + VAL_BYTES * parameters, results, (void **)&own->trap,
                       (void **)&own->error);
    return PyLong_FromVoidPtr(own->future);
}

static bool
poll_now(head *own)
{
    head *previous = here.polled;
    here.polled = own;
    PyThreadState *thread = PyEval_SaveThread();
    bool done = api.poll(own->future);
    PyEval_RestoreThread(thread);
    here.polled = previous;
    if (done) {
        own->finished = 1;
    }
    return done;
}

static PyObject *
raise_failure(Fiber *self)
{
    PyObject *failure = self->failure;
    self->failure = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
    Py_DECREF(failure);
    return NULL;
}

static PyObject *
Fiber_poll(Fiber *self, PyObject *unused)
{
    self->head->guarded = ((Gate *)self->handle)->guarded;
    Py_INCREF(self);
    bool done = poll_now(self->head);
    PyObject *result = self->failure != NULL ? raise_failure(self) : PyBool_FromLong(done);
    Py_DECREF(self);
    return result;
}

/* The host with a number, NULL if it has to be called the slow way. */
static Host *
find_host(PyObject *hosts, uint64_t number)
{
    PyObject *entry = PyList_CheckExact(hosts) && (Py_ssize_t)number < PyList_GET_SIZE(hosts)
                          ? PyList_GET_ITEM(hosts, (Py_ssize_t)number)
                          : NULL;
    return entry != NULL && Py_IS_TYPE(entry, &Host_Type) ? (Host *)entry : NULL;
}

static Host *
requested_host(const head *own, PyObject *hosts)
{
    return own->requested ? find_host(hosts, own->host) : NULL;
}

/* How far a host has come: what it has raised, or returned, which may have to be awaited. */
typedef struct {
    PyObject *answer, *raised;
    bool goes_on;
} Run;

/* Call the host with raw arguments. */
static PyObject *
call_host(const unsigned char *from, const Host *host)
{
    PyObject *values[MOST_VALUES + 1] = {NULL}, *answer = NULL;
    Py_ssize_t made = 0, wanted = host->signature.parameters;
    while (made < wanted) {
        PyObject *value = decode(host->signature.letters[made], from + RAW_BYTES * made);
        if (value == NULL) {
            break;
        }
        values[++made] = value;
    }
    if (made == wanted) {
        answer = PyObject_Vectorcall(host->callable, values + 1,
                                     made | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    while (made > 0) {
        Py_DECREF(values[made--]);
    }
    return answer;
}

/*
 * Coroutines that run within each other, on this thread. Should the innermost wait, each of them is
 * awaited by more frames than it runs in now, of which the recursion limit has to allow as many.
 */
static THREAD_LOCAL int steps;
#define MOST_STEPS 4
#define STEP_FRAMES 40
#define FRAMES_EACH 4

static bool
is_room(long frames)
{
    frames += FRAMES_EACH * steps;
#if PY_VERSION_HEX < 0x030C0000
    return PyThreadState_Get()->recursion_remaining > frames;
#else
    return PyThreadState_Get()->py_recursion_remaining > frames;
#endif
}

/* Call the host, and run the coroutine of one that suspends until it waits for something. */
static Run
run_host(const head *own, const Host *host)
{
    Run run = {.answer = call_host((const unsigned char *)(uintptr_t)own->arguments, host)};
    if (run.answer != NULL && host->suspending) {
        PyObject *value = NULL;
        /* One that somebody else knows may have begun. */
        bool fresh = PyCoro_CheckExact(run.answer) && Py_REFCNT(run.answer) == 1;
        if (!fresh || steps == MOST_STEPS || !is_room(STEP_FRAMES)) {
            run.goes_on = true;
            return run;
        }
        steps++;
        PySendResult came = PyIter_Send(run.answer, Py_None, &value);
        steps--;
        if (came == PYGEN_NEXT) {
            run.goes_on = true;
            PyObject *given[] = {run.answer, value};
            PyObject *rest = PyObject_Vectorcall(resume, given, 2, NULL);
            Py_DECREF(value);
            value = rest;
        }
        Py_SETREF(run.answer, value);
    }
    if (run.answer != NULL && !run.goes_on && PyErr_CheckSignals() < 0) {
        Py_CLEAR(run.answer);
    }
    if (run.answer == NULL) {
        run.goes_on = false;
        run.raised = take_raised();
    }
    return run;
}

/* (value,) | (None, exception) | (awaitable, call) */
static PyObject *
outcome_of(const Run *run, PyObject *call)
{
    return run->raised != NULL ? PyTuple_Pack(2, Py_None, run->raised)
           : run->goes_on      ? PyTuple_Pack(2, run->answer, call)
                               : PyTuple_Pack(1, run->answer);
}

static void
clear_run(Run *run)
{
    Py_CLEAR(run->answer);
    Py_CLEAR(run->raised);
}

/* Have hosts see `call` as what they run for; NULL with an exception, else for `leave_call`. */
static PyObject *
enter_call(PyObject *call)
{
    return call == NULL ? NULL : PyContextVar_Set(current_call, call);
}

/* Undo that, if there is a call; keeps an exception that is on its way. */
static void
leave_call(PyObject **call, PyObject **token)
{
    if (*call == NULL) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if ((*token != NULL && PyContextVar_Reset(current_call, *token) < 0) ||
        PyObject_SetAttr(*call, name_active, Py_False) < 0) {
        PyErr_WriteUnraisable(current_call);
    }
    Py_CLEAR(*token);
    Py_CLEAR(*call);
    PyErr_Restore(type, value, traceback);
}

/* Write what the host has returned, raw; false if that has to be done the slow way. */
static bool
encode_answer(const Host *host, PyObject *answer, unsigned char *to)
{
    Py_ssize_t results = host->signature.results;
    const char *letters = host->signature.letters + MOST_VALUES;
    if (results == 0) {
        return true;
    }
    if (results == 1) {
        return encode(letters[0], answer, to);
    }
    if (!PyTuple_CheckExact(answer) || PyTuple_GET_SIZE(answer) != results) {
        return false;
    }
    for (Py_ssize_t index = 0; index < results; index++) {
        if (!encode(letters[index], PyTuple_GET_ITEM(answer, index), to + RAW_BYTES * index)) {
            return false;
        }
    }
    return true;
}

/* Answer the request with what its host has returned; false if that has to be done the slow way. */
static bool
answer_plainly(head *own, Host *host, PyObject *answer)
{
    if (!encode_answer(host, answer, (unsigned char *)(uintptr_t)own->results)) {
        return false;
    }
    own->requested = 0;
    own->flag = 1;
    return true;
}

/* Whether the guest is still there: another thread may have closed the store. */
static bool
is_there(const Gate *gate, const head *own)
{
    return !gate->closing && gate->generation == generation && own->future != NULL;
}

/* Answer if what the host has returned is plain, and the guest still there; false otherwise. */
static bool
answer_at_once(const Gate *gate, head *own, Host *host, const Run *run)
{
    return run->answer != NULL && !run->goes_on && !PyCoro_CheckExact(run->answer) &&
           is_there(gate, own) && answer_plainly(own, host, run->answer);
}

/* Whether something that a host has started is on top of the operation; -1 for an error. */
static int
is_occupied(PyObject *operation)
{
    PyObject *children = PyObject_GetAttr(operation, name_children), *current;
    if (children == NULL || children == Py_None) {
        Py_XDECREF(children);
        return children == NULL ? -1 : 0;
    }
    current = PyObject_GetAttr(children, name_current);
    Py_DECREF(children);
    Py_XDECREF(current);
    return current == NULL ? -1 : current != Py_None;
}

/* answer(gate, hosts, value) -> whether the request has been answered */
static PyObject *
Fiber_answer(Fiber *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "answer(gate, hosts, value)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    head *own = self->head;
    if (!is_free(gate) || own->future == NULL) {
        Py_RETURN_FALSE;
    }
    Host *host = requested_host(own, args[1]);
    return PyBool_FromLong(host != NULL && answer_plainly(own, host, args[2]));
}

/*
 * advance(gate, hosts, operation, seconds, awaits)
 *     -> state | outcome
 *
 * Poll, and answer requests of hosts, until something else is to be done or the time is over. An
 * outcome hands back what a host has returned or raised, for the slow way, or what is to be awaited
 * for one that suspends, if the caller `awaits` those: then the context variable stays set. Its
 * value while hosts run is a call of the operation.
 */
static PyObject *
Fiber_advance(Fiber *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "advance(gate, hosts, operation, seconds, awaits)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    PyObject *operation = args[2], *call = NULL, *token = NULL, *result = NULL;
    double end = PyFloat_AsDouble(args[3]);
    bool awaits = args[4] == Py_True;
    head *own = self->head;
    if (end == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    end += fine_seconds();
    own->guarded = gate->guarded;
    Py_INCREF(self);
    for (;;) {
        /* Another thread may have come in while Python code ran, and may have closed the store. */
        if (!wait_outside(gate)) {
            break;
        }
        if (!is_there(gate, own)) {
            result = Py_NewRef(state_yielded);
            break;
        }
        go_inside(gate, false);
        bool done = poll_now(own);
        if (self->failure != NULL) {
            raise_failure(self);
        }
        if (leave(gate) < 0 || PyErr_Occurred()) {
            break;
        }
        if (done) {
            result = Py_NewRef(state_done);
            break;
        }
        if (!own->requested || gate->closing) {
            result = Py_NewRef(state_yielded);
            break;
        }
        Host *host = requested_host(own, args[1]);
        if (host == NULL || (host->suspending && !awaits)) {
            result = Py_NewRef(state_import);
            break;
        }
        if (token == NULL) {
            call = PyObject_CallOneArg(call_type, operation);
            token = enter_call(call);
            if (token == NULL) {
                break;
            }
        }
        Py_INCREF(host);
        Run run = run_host(own, host);
        int occupied = run.answer == NULL || run.goes_on ? 1 : is_occupied(operation);
        if (occupied > 0 || (occupied == 0 && !answer_at_once(gate, own, host, &run))) {
            result = outcome_of(&run, call);
        }
        else if (occupied == 0 && fine_seconds() >= end) {
            result = Py_NewRef(state_answered);
        }
        if (result != NULL && run.goes_on) {
            Py_CLEAR(token);
            Py_CLEAR(call);
        }
        else if (host->suspending) { /* tasks that it has left behind are on their own */
            leave_call(&call, &token);
        }
        Py_DECREF(host);
        clear_run(&run);
        if (result != NULL || PyErr_Occurred()) {
            break;
        }
    }
    leave_call(&call, &token);
    Py_DECREF(self);
    return result;
}

static PyObject *
Fiber_resume(Fiber *self, PyObject *unused)
{
    self->head->requested = 0;
    self->head->flag = 1;
    Py_RETURN_NONE;
}

static PyObject *
Fiber_get_request(Fiber *self, void *unused)
{
    head *own = self->head;
    if (!own->requested) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("KKKK", (unsigned long long)own->host, (unsigned long long)own->arguments,
                         (unsigned long long)own->results, (unsigned long long)own->trap_out);
}

static PyObject *
Fiber_get_address(Fiber *self, void *unused)
{
    return PyLong_FromVoidPtr(self->head);
}

static PyObject *
Fiber_get_future(Fiber *self, void *unused)
{
    return PyLong_FromVoidPtr(self->head->future);
}

static int
Fiber_set_future(Fiber *self, PyObject *value, void *unused)
{
    void *future = value == NULL ? NULL : PyLong_AsVoidPtr(value);
    if (future == NULL && PyErr_Occurred()) {
        return -1;
    }
    self->head->future = future;
    return 0;
}

static PyObject *
Fiber_get_finished(Fiber *self, void *unused)
{
    return PyBool_FromLong(self->head->finished);
}

static PyObject *
Fiber_get_dispatching(Fiber *self, void *unused)
{
    return PyBool_FromLong(self->head->dispatching);
}

static PyObject *
Fiber_get_object(Fiber *self, void *which)
{
    PyObject *value = *(PyObject **)((char *)self + (size_t)which);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int
Fiber_set_object(Fiber *self, PyObject *value, void *which)
{
    PyObject **slot = (PyObject **)((char *)self + (size_t)which);
    PyObject *old = *slot;
    *slot = value == NULL || value == Py_None ? NULL : Py_NewRef(value);
    Py_XDECREF(old);
    if (slot == &self->child) {
        self->head->child =
            self->child != NULL && PyObject_TypeCheck(self->child, &Fiber_Type) ? ((Fiber *)self->child)->head
                                                                        : NULL;
    }
    if (slot == &self->action) {
        self->head->fiber = self->action == NULL ? NULL : (PyObject *)self;
    }
    return 0;
}

static PyMethodDef Fiber_methods[] = {
    {"begin_call", (PyCFunction)Fiber_begin_call, METH_VARARGS, NULL},
    {"poll", (PyCFunction)Fiber_poll, METH_O, NULL},
    {"advance", (PyCFunction)(void (*)(void))Fiber_advance, METH_FASTCALL, NULL},
    {"answer", (PyCFunction)(void (*)(void))Fiber_answer, METH_FASTCALL, NULL},
    {"resume", (PyCFunction)Fiber_resume, METH_NOARGS, NULL},
    {NULL},
};

#define OBJECT(name) (void *)offsetof(Fiber, name)

static PyGetSetDef Fiber_getset[] = {
    {"_request", (getter)Fiber_get_request, NULL, NULL, NULL},
    {"address", (getter)Fiber_get_address, NULL, NULL, NULL},
    {"future", (getter)Fiber_get_future, (setter)Fiber_set_future, NULL, NULL},
    {"finished", (getter)Fiber_get_finished, NULL, NULL, NULL},
    {"dispatching", (getter)Fiber_get_dispatching, NULL, NULL, NULL},
    {"handle", (getter)Fiber_get_object, NULL, NULL, OBJECT(handle)},
    {"kept", (getter)Fiber_get_object, NULL, NULL, OBJECT(memory)},
    {"child", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(child)},
    {"action", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(action)},
    {"failure", (getter)Fiber_get_object, (setter)Fiber_set_object, NULL, OBJECT(failure)},
    {NULL},
};

static PyTypeObject Fiber_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Fiber",
    .tp_basicsize = sizeof(Fiber),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = Fiber_new,
    .tp_dealloc = (destructor)Fiber_dealloc,
    .tp_finalize = Fiber_finalize,
    .tp_traverse = (traverseproc)Fiber_traverse,
    .tp_clear = (inquiry)Fiber_clear,
    .tp_as_buffer = &Fiber_buffer,
    .tp_methods = Fiber_methods,
    .tp_getset = Fiber_getset,
    .tp_weaklistoffset = offsetof(Fiber, weakrefs),
};

/*
 * Find the function that `instance` exports as `name`: its two words, and a tuple of its kind and
 * those words of what they point to that say which one it is; see externs.py. Nobody is inside.
 */
static PyObject *
identify_export(const Gate *gate, PyObject *instance, PyObject *name, uint64_t *words)
{
    unsigned char found[EXTERN_BYTES] = {0};
    if (PyBytes_GET_SIZE(instance) != INSTANCE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "an instance of the wrong size");
        return NULL;
    }
    if (!api.export_get(gate->context, PyBytes_AS_STRING(instance), PyBytes_AS_STRING(name),
                        (size_t)PyBytes_GET_SIZE(name), found)) {
        PyErr_SetObject(PyExc_KeyError, name);
        return NULL;
    }
    memcpy(words, found + 8, 2 * sizeof(uint64_t));
    const size_t *described = (const size_t *)(uintptr_t)words[1];
    return Py_BuildValue("iKK", 0, (unsigned long long)described[0],
                         (unsigned long long)described[3]);
}

/* What a weak reference refers to, as a new reference; NULL if that is gone, or with an exception. */
static PyObject *
referent(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    return PyWeakref_GetRef(reference, &object) < 0 ? NULL : object;
#else
    PyObject *object = PyWeakref_GetObject(reference);
    return object == Py_None ? NULL : Py_XNewRef(object);
#endif
}

/*
 * ---- Direct: what is called on this thread's own stack, unchecked ----
 *
 * The base of exported functions. Where an argument or the store needs more care, or if it was not
 * made for one, its `_detour` is called with the arguments instead. `_failed` makes the exception
 * of an error and a trap pointer; `_held` is told about calls longer than it was made with.
 */

typedef struct {
    Callee callee;
    double hold_seconds;
    PyObject *hosts; /* the list of the store's, or NULL: not looked up yet */
    /* what Python knows of it, here because most functions are made, called once, and forgotten */
    PyObject *external, *name, *quick, *shape, *store;
} Direct;

static PyTypeObject Direct_Type;

/*
 * Activation: a call on its thread's own stack, whose guest may call host functions.
 *
 * It begins with the GIL held, which takes as long to let go of and to take back as a short call
 * does. At the next tick the guest lets go of it: so others wait for it no longer than for a tick.
 *
 * While a host function runs, nobody is inside of the store, so that everything can be done with it
 * that can be done while a fiber waits, but two: on other threads nothing may begin, and the store is
 * not deleted, before the guest has gone on (`standing`). Exceptions that the guest must not see
 * are `raised` once it has been unwound.
 */
typedef struct Activation {
    struct Activation *outer; /* of this thread */
    Direct *function;
    PyThreadState *thread; /* without the GIL; NULL: the guest holds it */
    bool holds;            /* whether it does, until the next tick */
    unsigned beats;        /* ticks that the guest has met */
    double since;          /* when it met the first one */
    PyObject *entry;       /* what `current_call` was at the beginning; NULL until a host has run */
    PyObject *call;        /* for whom hosts run, NULL until somebody asks */
    PyObject *raised;
} Activation;

#define SIGNAL_BEATS 40 /* after which a guest on a thread's own stack looks for signals */

/* Whether guests of the store may hold the GIL until the next tick: there is sure to be one. */
static inline bool
may_hold(const Gate *gate)
{
    const Clock *clock = (const Clock *)gate->clock;
    return !(gate->lingers || gate->waits || gate->guarded || clock->parked || clock->manual);
}

/* Go inside with the clock running. Nobody is there. */
static inline void
run_on(Activation *self)
{
    Gate *gate = self->function->callee.gate;
    ((Clock *)gate->clock)->needed = true; /* before the look whether it is parked */
    self->holds = may_hold(gate);
    if (!gate->soon) {
        gate->soon = true;
        api.set_deadline(gate->context, NEAR);
    }
    gate->near = false;
    go_inside(gate, true);
    self->thread = self->holds ? NULL : PyEval_SaveThread();
}

/* Come out of the store, and have the GIL. */
static void
step_out(Activation *self)
{
    Gate *gate = self->function->callee.gate;
    if (self->thread != NULL) {
        PyEval_RestoreThread(self->thread);
        self->thread = NULL;
    }
    gate->inside = gate->roomless = false;
    gate->standing++;
    gate->handed_by = PyThread_get_thread_ident();
    if (self->entry == NULL && PyContextVar_Get(current_call, Py_None, &self->entry) < 0) {
        PyErr_WriteUnraisable(current_call);
        self->entry = Py_NewRef(Py_None);
    }
}

static void
keep_raised(Activation *self)
{
    PyObject *raised = take_raised();
    if (self->raised == NULL) {
        self->raised = raised;
    }
    else {
        Py_XDECREF(raised);
    }
}

/* Go back, whatever happens: the guest is there, and has to go on, or to be unwound. */
static void
step_in(Activation *self)
{
    Gate *gate = self->function->callee.gate;
    while (!wait_outside(gate)) {
        keep_raised(self);
    }
    gate->standing--;
    run_on(self);
}

/* Whether the store has been closed meanwhile; notes an exception, the one on its way if there is. */
static bool
is_gone(Activation *self)
{
    Gate *gate = self->function->callee.gate;
    if (!gate->closing && gate->generation == generation) {
        return false;
    }
    if (PyErr_Occurred()) {
        keep_raised(self);
    }
    if (self->raised == NULL) {
        self->raised = PyObject_CallMethodNoArgs((PyObject *)self->function, name_gone);
        if (self->raised == NULL) {
            keep_raised(self);
        }
    }
    return true;
}

/* Have Python answer with what the host has returned, or raised if that is NULL; returns a trap. */
static void *
settle(Activation *self, size_t number, unsigned char *values, PyObject *answer)
{
    PyObject *raised = PyErr_Occurred() ? take_raised() : NULL;
    PyObject *made = PyObject_CallMethod((PyObject *)self->function, "_settle", "nKOO",
                                         (Py_ssize_t)number, (unsigned long long)(uintptr_t)values,
                                         answer == NULL ? Py_None : answer,
                                         raised == NULL ? Py_None : raised);
    Py_XDECREF(raised);
    void *trap = made == NULL ? NULL : PyLong_AsVoidPtr(made);
    Py_XDECREF(made);
    if (PyErr_Occurred()) {
        keep_raised(self);
    }
    return trap;
}

/* The guest of an activation has called a host function; returns a trap, or NULL. */
static void *
host_on_stack(Activation *self, size_t number, unsigned char *values)
{
    void *trap = NULL;
    step_out(self);
    PyObject *answer = NULL;
    Host *host = find_host(self->function->hosts, number);
    Py_XINCREF(host);
    bool plain = false;
    if (!is_gone(self) && host != NULL && !host->suspending) {
        answer = call_host(values, host);
        if (answer != NULL && PyErr_CheckSignals() < 0) {
            Py_CLEAR(answer);
        }
        plain = answer != NULL && !PyCoro_CheckExact(answer) && encode_answer(host, answer, values);
    }
    if (!is_gone(self) && !plain) {
        trap = settle(self, number, values, answer);
    }
    Py_XDECREF(answer);
    Py_XDECREF(host);
    if (self->call != NULL) { /* something has been started, and may have been left behind */
        PyObject *left = PyObject_CallMethodNoArgs(self->call, name_check);
        if (left == NULL) {
            keep_raised(self);
        }
        Py_XDECREF(left);
    }
    is_gone(self);
    step_in(self);
    if (self->raised == NULL) {
        return trap;
    }
    if (trap != NULL) {
        api.trap_delete(trap);
    }
    return new_trap("ended by what a host function has raised");
}

static PyObject *count_greenlets; /* says how many threads have used greenlets; NULL: unknown */

/* Whether stacks may be exchanged while Python code runs; see greenlets_switch in direct.py. */
static bool
greenlets_switch(void)
{
    PyObject *module = PyDict_GetItemWithError(PyImport_GetModuleDict(), name_greenlet);
    if (module == NULL) {
        return false;
    }
    if (count_greenlets == NULL) {
        PyObject *inner = PyObject_GetAttrString(module, "_greenlet");
        count_greenlets =
            inner == NULL ? NULL : PyObject_GetAttrString(inner, "get_total_main_greenlets");
        Py_XDECREF(inner);
    }
    PyObject *count = count_greenlets == NULL ? NULL : PyObject_CallNoArgs(count_greenlets);
    bool some = count == NULL || PyObject_IsTrue(count) != 0;
    PyErr_Clear();
    Py_XDECREF(count);
    return some;
}

/* The guest has met a tick; false: it is to be ended. */
static bool
meet_tick(Activation *self)
{
    if (self->thread == NULL) { /* now others may have it */
        self->thread = PyEval_SaveThread();
    }
    if (self->beats++ == 0) {
        self->since = coarse_seconds();
    }
    if (self->beats % SIGNAL_BEATS == 0) {
        Gate *gate = self->function->callee.gate;
        step_out(self);
        /* The library has taken its own while it is called. A handler may call into the store. */
        api.store_on_deadline(gate->store, on_deadline, gate, NULL);
        if (!greenlets_switch() && PyErr_CheckSignals() < 0) {
            keep_raised(self);
        }
        is_gone(self);
        step_in(self);
        if (self->thread == NULL) {
            self->thread = PyEval_SaveThread();
        }
    }
    return self->raised == NULL;
}

/*
 * The deadline of a guest has come. A fiber yields. A call on a thread's own stack cannot: it goes
 * on, with the next tick as its deadline. Any other has a deadline of its own, and the library ends
 * it.
 */
static void *
on_deadline(void *context, void *data, uint64_t *ticks, uint8_t *kind)
{
    Gate *gate = data;
    Activation *self = here.running;
    if (here.polled != NULL || self == NULL || self->function->callee.gate != gate) {
        gate->soon = gate->stride <= NEAR;
        *ticks = gate->stride;
        *kind = 1; /* yield, and go on then */
        return NULL;
    }
    bool goes_on = meet_tick(self);
    ((Clock *)gate->clock)->needed = true;
    gate->soon = true;
    *ticks = NEAR;
    *kind = 0;
    return goes_on ? NULL : api.error_new("ended by a signal handler");
}

/* What stands for the activation, made now if nobody has asked yet. */
static PyObject *
stack_call(Activation *self)
{
    if (self->call == NULL) {
        Activation *outer = self->outer;
        PyObject *before =
            outer != NULL && outer->entry == self->entry ? stack_call(outer) : self->entry;
        self->call = before == NULL ? NULL
                                    : PyObject_CallFunctionObjArgs(
                                          stack_call_type, (PyObject *)self->function, before, NULL);
    }
    return self->call;
}

/* innermost(call) -> for whom what runs now does, if the context variable says `call` */
static PyObject *
innermost(PyObject *module, PyObject *call)
{
    Activation *self = here.running;
    /* Whoever has begun in the guest's hosts since then has set the variable. */
    return Py_XNewRef(self == NULL || self->entry != call ? call : stack_call(self));
}

/* stack_call(gate) -> what stands for the innermost activation of the store on this thread, or None */
static PyObject *
find_stack_call(PyObject *module, PyObject *gate)
{
    Activation *self = here.running;
    while (self != NULL && (PyObject *)self->function->callee.gate != gate) {
        self = self->outer;
    }
    return Py_XNewRef(self == NULL ? Py_None : stack_call(self));
}

static PyObject *
Direct_detour(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *values = PyTuple_New(count);
    if (values == NULL) {
        return NULL;
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        PyTuple_SET_ITEM(values, index, Py_NewRef(args[index]));
    }
    PyObject *result = PyObject_CallMethodOneArg(self, name_detour, values);
    Py_DECREF(values);
    return result;
}

/* Call a method that must not fail; keeps an exception that is on its way. */
static void
tell(PyObject *object, PyObject *method)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *done = PyObject_CallMethodNoArgs(object, method);
    if (done == NULL) {
        PyErr_WriteUnraisable(object);
    }
    Py_XDECREF(done);
    PyErr_Restore(type, value, traceback);
}

/* Leave what the guest of an activation has left behind; false with an exception. */
static bool
end_activation(Activation *self, void *error, void *trap)
{
    bool goes_on = true;
    if (self->raised != NULL) {
        if (error != NULL) {
            api.error_delete(error);
        }
        if (trap != NULL) {
            api.trap_delete(trap);
        }
        tell((PyObject *)self->function, name_stopped);
        raise_made(self->raised);
        goes_on = false;
    }
    if (self->call != NULL) {
        tell(self->call, name_over);
    }
    Py_XDECREF(self->call);
    Py_XDECREF(self->entry);
    return goes_on;
}

/* Call with encoded values; the caller has made sure that nobody is in the way. */
static PyObject *
Direct_run(Direct *self, unsigned char *values, Py_ssize_t length)
{
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    Clock *clock = (Clock *)gate->clock;
    void *trap = NULL;
    Activation own = {.outer = here.running, .function = self};
    head *polled = here.polled; /* whose action has come here by way of a finalizer */
    if (clock->parked) {
        wake_clock(clock); /* if that is impossible, nobody looks for signals */
    }
    /* Where no host runs and no tick is met, it has not taken long. */
    bool timed = gate->hosted || !may_hold(gate) || self->hold_seconds < TICK_SECONDS;
    double started = timed ? coarse_seconds() : 0;
    Py_INCREF(self); /* the guest may outlive every other reference */
    begin_yielding(gate);
    here.polled = NULL;
    here.running = &own;
    if (gate->top == NULL) {
        gate->top = (char *)&own;
    }
    run_on(&own);
    void *error = api.call_unchecked(gate->context, callee->function, values, length, &trap);
    if (own.thread != NULL) {
        PyEval_RestoreThread(own.thread);
    }
    gate->inside = gate->roomless = false; /* for what has been left behind */
    here.running = own.outer;
    here.polled = polled;
    if (gate->top == (char *)&own) {
        gate->top = NULL;
    }
    PyObject *result = NULL;
    bool goes_on = end_activation(&own, error, trap);
    if (leave(gate) < 0 || !goes_on) {
        goto leave;
    }
    if (error != NULL || trap != NULL) {
        raise_made(PyObject_CallMethod((PyObject *)self, "_failed", "KK",
                                       (unsigned long long)(uintptr_t)error,
                                       (unsigned long long)(uintptr_t)trap));
        goto leave;
    }
    if (timed || own.beats) {
        double seconds = coarse_seconds() - (timed ? started : own.since);
        if (seconds > self->hold_seconds) {
            PyObject *done = PyObject_CallMethod((PyObject *)self, "_held", "d", seconds);
            if (done == NULL) {
                goto leave;
            }
            Py_DECREF(done);
        }
    }
    result = decode_results(&callee->signature, values, RAW_BYTES);
leave:
    Py_DECREF(self);
    return result;
}

static bool deadlines; /* whether some store has ever had one for synchronous calls */

/* Whether what runs now runs on behalf of a call. */
static bool
has_outer(void)
{
    PyObject *call = NULL;
    if (here.running != NULL || PyContextVar_Get(current_call, Py_None, &call) < 0) {
        PyErr_Clear();
        return true;
    }
    Py_DECREF(call);
    return call != Py_None;
}

/* Whether hosts can run on this thread's own stack, as far as can be told without Python. */
static inline bool
can_host(const Direct *self)
{
    return self->hosts != NULL && !(deadlines && has_outer()) && !greenlets_switch();
}

/* Whether there is a fiber that waits for its operation. */
static bool
is_handed(const Gate *gate)
{
    if (gate->handed == NULL || gate->handed == Py_None) {
        return false;
    }
    PyObject *fiber = referent(gate->handed);
    PyErr_Clear(); /* it is no reference of ours */
    Py_XDECREF(fiber);
    return fiber != NULL;
}

/* Whether a call that nobody knows of yet is in the way: on this thread it is what this one nests in. */
static inline bool
is_stopped(const Gate *gate)
{
    return (gate->standing || is_handed(gate)) && gate->handed_by != PyThread_get_thread_ident();
}

static PyObject *
Direct_vectorcall(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Direct *self = (Direct *)callable;
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    unsigned char values[RAW_BYTES * MOST_VALUES];
    if (names != NULL && PyTuple_GET_SIZE(names)) {
        PyErr_SetString(PyExc_TypeError, "a wasm function takes no keyword arguments");
        return NULL;
    }
    if (gate == NULL || gate->detour || gate->clock == NULL || !is_free(gate) || is_stopped(gate) ||
        count != callee->signature.parameters || !fits(gate) ||
        (gate->hosted && !can_host(self))) {
        return Direct_detour(callable, args, count);
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!encode(callee->signature.letters[index], args[index], values + RAW_BYTES * index)) {
            return Direct_detour(callable, args, count);
        }
    }
    Py_ssize_t results = callee->signature.results;
    return Direct_run(self, values, count > results ? count : results);
}

/* _through(values) -> the result; NotImplemented if somebody has come in. Nothing else is checked. */
static PyObject *
Direct_through(Direct *self, PyObject *given)
{
    Callee *callee = &self->callee;
    Gate *gate = callee->gate;
    unsigned char values[RAW_BYTES * MOST_VALUES];
    if (gate == NULL || !PyTuple_CheckExact(given) ||
        PyTuple_GET_SIZE(given) != callee->signature.parameters ||
        gate->clock == NULL || (gate->hosted && self->hosts == NULL)) {
        PyErr_SetString(PyExc_TypeError, "_through(converted values), of one in a store");
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(given), results = callee->signature.results;
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!encode(callee->signature.letters[index], PyTuple_GET_ITEM(given, index),
                    values + RAW_BYTES * index)) {
            PyErr_SetString(PyExc_TypeError, "a value has not been converted");
            return NULL;
        }
    }
    /* Whoever only looks at something is waited for. */
    if (!(gate->inside && gate->roomless) && !wait_outside(gate)) {
        return NULL;
    }
    if (gate->inside || gate->closing || gate->generation != generation || is_stopped(gate)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    return Direct_run(self, values, count > results ? count : results);
}

static PyObject *
Direct_call(PyObject *callable, PyObject *args, PyObject *kwargs)
{
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "a wasm function takes no keyword arguments");
        return NULL;
    }
    return Direct_vectorcall(callable, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args),
                             NULL);
}

static PyObject *
Direct_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Direct *self = (Direct *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->callee.vectorcall = Direct_vectorcall;
    }
    return (PyObject *)self;
}

/*
 * _new(gate, (function), parameters, results, hold_seconds, store, shape, name): one of a store
 */
static PyObject *
Direct_make(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count != 8 || !PyObject_TypeCheck(args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "_new(gate, function, parameters, results, hold_seconds, "
                                         "store, shape, name)");
        return NULL;
    }
    Direct *self = (Direct *)Direct_new((PyTypeObject *)type, NULL, NULL);
    if (self == NULL) {
        return NULL;
    }
    self->store = Py_NewRef(args[5]);
    self->shape = Py_NewRef(args[6]);
    self->name = Py_NewRef(args[7]);
    self->hold_seconds = PyFloat_AsDouble(args[4]);
    if (!take_callee(&self->callee, args) || PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    self->callee.gate = (Gate *)Py_NewRef(args[0]);
    return (PyObject *)self;
}

/*
 * _exported(gate, instance, (name, parameters, results, shape, name), hold_seconds, store, hosts,
 *           known)
 *
 * The function that an instance exports: the one that is `known` by what it is, or one made now,
 * which becomes so. None if somebody is inside, or nobody can be.
 */
static PyObject *
Direct_exported(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count != 7 || !PyObject_TypeCheck(args[0], &Gate_Type) || !PyBytes_CheckExact(args[1]) ||
        !PyTuple_CheckExact(args[2]) || PyTuple_GET_SIZE(args[2]) != 5 ||
        !PyBytes_CheckExact(PyTuple_GET_ITEM(args[2], 0)) || !PyDict_CheckExact(args[6])) {
        PyErr_SetString(PyExc_TypeError, "_exported(gate, instance, what is exported, "
                                         "hold_seconds, store, hosts, known functions)");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    PyObject *const *export = ((PyTupleObject *)args[2])->ob_item;
    uint64_t words[2];
    if (!is_free(gate) || !gate->open) {
        Py_RETURN_NONE;
    }
    PyObject *identity = identify_export(gate, args[1], export[0], words), *made = NULL;
    if (identity == NULL) {
        return NULL;
    }
    PyObject *reference = PyDict_GetItemWithError(args[6], identity);
    if (reference != NULL) {
        made = referent(reference);
    }
    if (made != NULL) {
        if (PyObject_TypeCheck(made, &Direct_Type) && PyObject_Not(((Direct *)made)->name) == 1) {
            Py_XSETREF(((Direct *)made)->name, Py_NewRef(export[4])); /* met in a table before */
        }
    }
    else if (!PyErr_Occurred()) {
        PyObject *words_of = Py_BuildValue("KK", (unsigned long long)words[0],
                                           (unsigned long long)words[1]);
        PyObject *given[] = {args[0], words_of, export[1], export[2],
                             args[3], args[4],  export[3], export[4]};
        made = words_of == NULL ? NULL : Direct_make(type, given, 8);
        Py_XDECREF(words_of);
        reference = made == NULL ? NULL : PyWeakref_NewRef(made, NULL);
        if (reference == NULL || PyDict_SetItem(args[6], identity, reference) < 0) {
            Py_CLEAR(made);
        }
        else if (args[5] != Py_None) {
            ((Direct *)made)->hosts = Py_NewRef(args[5]);
        }
        Py_XDECREF(reference);
    }
    Py_DECREF(identity);
    return made;
}

static PyObject *make_extern; /* of the two words of a function */

static PyObject *
Direct_get_extern(Direct *self, void *unused)
{
    const uint64_t *words = self->callee.function;
    if (self->external == NULL && self->callee.gate != NULL) {
        self->external = PyObject_CallFunction(make_extern, "((KK))", (unsigned long long)words[0],
                                               (unsigned long long)words[1]);
        if (self->external == NULL) {
            return NULL;
        }
    }
    return Py_NewRef(self->external == NULL ? Py_None : self->external);
}

static int
Direct_set_extern(Direct *self, PyObject *value, void *unused)
{
    Py_XSETREF(self->external, value == NULL || value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

static PyMemberDef Direct_members[] = {
    {"_name", T_OBJECT, offsetof(Direct, name), 0, NULL},
    {"_quick", T_OBJECT, offsetof(Direct, quick), 0, NULL},
    {"_shape", T_OBJECT, offsetof(Direct, shape), 0, NULL},
    {"_store", T_OBJECT, offsetof(Direct, store), 0, NULL},
    {NULL},
};

static PyMethodDef Direct_methods[] = {
    {"_exported", (PyCFunction)(void (*)(void))Direct_exported, METH_FASTCALL | METH_CLASS, NULL},
    {"_new", (PyCFunction)(void (*)(void))Direct_make, METH_FASTCALL | METH_CLASS, NULL},
    {"_through", (PyCFunction)Direct_through, METH_O, NULL},
    {NULL},
};

static int
Direct_set_hosts(Direct *self, PyObject *hosts, void *unused)
{
    if (hosts == NULL || !PyList_CheckExact(hosts)) {
        PyErr_SetString(PyExc_TypeError, "expected a list of hosts");
        return -1;
    }
    if (self->hosts == NULL) { /* it is the same one each time */
        self->hosts = Py_NewRef(hosts);
    }
    return 0;
}

static PyObject *
Direct_get_hosts(Direct *self, void *unused)
{
    return Py_NewRef(self->hosts == NULL ? Py_None : self->hosts);
}

static PyGetSetDef Direct_getset[] = {
    {"_extern", (getter)Direct_get_extern, (setter)Direct_set_extern, NULL, NULL},
    {"_hosts", (getter)Direct_get_hosts, (setter)Direct_set_hosts, NULL, NULL},
    {NULL},
};

static int
Direct_traverse(Direct *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callee.gate);
    Py_VISIT(self->external);
    Py_VISIT(self->hosts);
    Py_VISIT(self->name);
    Py_VISIT(self->quick);
    Py_VISIT(self->shape);
    Py_VISIT(self->store);
    return 0;
}

static int
Direct_clear(Direct *self)
{
    Py_CLEAR(self->quick);
    return 0;
}

static void
Direct_dealloc(Direct *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->callee.gate);
    Py_CLEAR(self->external);
    Py_CLEAR(self->hosts);
    Py_CLEAR(self->name);
    Py_CLEAR(self->quick);
    Py_CLEAR(self->shape);
    Py_CLEAR(self->store);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Direct_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Direct",
    .tp_basicsize = sizeof(Direct),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
                Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = Direct_new,
    .tp_dealloc = (destructor)Direct_dealloc,
    .tp_traverse = (traverseproc)Direct_traverse,
    .tp_clear = (inquiry)Direct_clear,
    .tp_call = Direct_call,
    .tp_vectorcall_offset = offsetof(Callee, vectorcall),
    .tp_methods = Direct_methods,
    .tp_getset = Direct_getset,
    .tp_members = Direct_members,
};

/* ---- instances: the steps of a short life, one call each ---- */

/* (context, module, externs): (error, trap, instance) */
static PyObject *
instantiate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PySequence_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected a context, a module and externs");
        return NULL;
    }
    void *context = take_address(args[0]);
    void *code = context == NULL ? NULL : take_address(args[1]);
    if (code == NULL) {
        return NULL;
    }
    PyObject *joined = NULL;
    Py_ssize_t length = PySequence_Size(args[2]);
    if (length < 0) {
        return NULL;
    }
    if (length) {
        PyObject *empty = PyBytes_FromStringAndSize(NULL, 0);
        joined = empty == NULL ? NULL : PyObject_CallMethod(empty, "join", "O", args[2]);
        Py_XDECREF(empty);
        if (joined == NULL) {
            return NULL;
        }
        if (PyBytes_GET_SIZE(joined) != length * EXTERN_BYTES) {
            Py_DECREF(joined);
            PyErr_SetString(PyExc_ValueError, "an extern of the wrong size");
            return NULL;
        }
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    void *error = api.instance_new(context, code, joined ? PyBytes_AS_STRING(joined) : NULL,
                                      (size_t)length, instance, &trap);
    PyEval_RestoreThread(thread);
    Py_XDECREF(joined);
    return Py_BuildValue("KKy#", (unsigned long long)(uintptr_t)error,
                         (unsigned long long)(uintptr_t)trap, instance,
                         (Py_ssize_t)INSTANCE_BYTES);
}

/* Return a gate for (engine, limits). */
static Gate *
new_gate(PyTypeObject *type, PyObject *const *args, Py_ssize_t stack_bytes)
{
    if (type->tp_init != (initproc)Gate_init) { /* somebody wants to know of each */
        return (Gate *)PyObject_CallFunction((PyObject *)type, "OKOn", args[0],
                                             (unsigned long long)FAR, args[1], stack_bytes);
    }
    Gate *gate = (Gate *)Gate_new(type, NULL, NULL);
    if (gate != NULL && open_gate(gate, args[0], FAR, args[1], stack_bytes) < 0) {
        Py_CLEAR(gate);
    }
    return gate;
}

/*
 * build(type of gates, engine, limits, stack bytes, module, whether that is a linked one):
 *     (gate, error, trap, instance)
 *
 * A store and its first instance. It imports nothing, or is linked with plain hosts.
 */
static PyObject *
build(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6 || !PyType_Check(args[0]) ||
        !PyType_IsSubtype((PyTypeObject *)args[0], &Gate_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a type of gates, an engine, limits, bytes of "
                                         "stack, a module, and whether it is linked");
        return NULL;
    }
    Py_ssize_t stack_bytes = PyLong_AsSsize_t(args[3]);
    if (stack_bytes == -1 && PyErr_Occurred()) {
        return NULL;
    }
    void *code = take_address(args[4]);
    Gate *gate = code == NULL ? NULL : new_gate((PyTypeObject *)args[0], args + 1, stack_bytes);
    if (gate == NULL) {
        return NULL;
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL, *error;
    gate->inside = true;
    PyThreadState *thread = PyEval_SaveThread();
    if (args[5] == Py_True) {
        error = api.linked_new(code, gate->context, instance, &trap);
    }
    else {
        error = api.instance_new(gate->context, code, NULL, 0, instance, &trap);
    }
    PyEval_RestoreThread(thread);
    gate->inside = false; /* nobody else has known it yet */
    PyObject *made[] = {(PyObject *)gate, PyLong_FromVoidPtr(error), PyLong_FromVoidPtr(trap),
                        PyBytes_FromStringAndSize((const char *)instance, INSTANCE_BYTES)};
    PyObject *result = PyTuple_New(4);
    for (int index = 0; index < 4; index++) {
        if (result == NULL || made[index] == NULL) {
            Py_XDECREF(made[index]);
            Py_CLEAR(result);
        }
        else {
            PyTuple_SET_ITEM(result, index, made[index]);
        }
    }
    return result;
}

/* (context, linked module): (error, trap, instance). It has plain hosts only, and no start. */
static PyObject *
instantiate_linked(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    void *context = count == 2 ? take_address(args[0]) : NULL;
    void *linked = context == NULL ? NULL : take_address(args[1]);
    if (linked == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "expected a context and a linked module");
        }
        return NULL;
    }
    unsigned char instance[INSTANCE_BYTES] = {0};
    void *trap = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    void *error = api.linked_new(linked, context, instance, &trap);
    PyEval_RestoreThread(thread);
    return Py_BuildValue("KKy#", (unsigned long long)(uintptr_t)error,
                         (unsigned long long)(uintptr_t)trap, instance,
                         (Py_ssize_t)INSTANCE_BYTES);
}

/* Find what the arguments (context, instance, name) say; false with an exception. */
static bool
look_up(PyObject *const *args, Py_ssize_t count, unsigned char *found)
{
    if (count != 3 || !PyBytes_CheckExact(args[1]) || !PyBytes_CheckExact(args[2]) ||
        PyBytes_GET_SIZE(args[1]) != INSTANCE_BYTES) {
        PyErr_SetString(PyExc_TypeError, "expected a context, an instance and a name");
        return false;
    }
    void *context = take_address(args[0]);
    if (context == NULL) {
        return false;
    }
    memset(found, 0, EXTERN_BYTES);
    if (!api.export_get(context, PyBytes_AS_STRING(args[1]), PyBytes_AS_STRING(args[2]),
                           (size_t)PyBytes_GET_SIZE(args[2]), found)) {
        PyErr_SetObject(PyExc_KeyError, args[2]);
        return false;
    }
    return true;
}

static PyObject *
find_export(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    unsigned char found[EXTERN_BYTES];
    if (!look_up(args, count, found)) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)found, EXTERN_BYTES);
}

/*
 * (gate, instance, name): (the two words of a function), (its kind, and of what they point to those
 * words that say which one it is); None if somebody is inside, or nobody can be.
 */
static PyObject *
find_function(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(args[0], &Gate_Type) || !PyBytes_CheckExact(args[1]) ||
        !PyBytes_CheckExact(args[2]) || PyBytes_GET_SIZE(args[1]) != INSTANCE_BYTES) {
        PyErr_SetString(PyExc_TypeError, "expected a gate, an instance and a name");
        return NULL;
    }
    Gate *gate = (Gate *)args[0];
    if (!is_free(gate) || !gate->open) {
        Py_RETURN_NONE;
    }
    uint64_t words[2];
    PyObject *identity = identify_export(gate, args[1], args[2], words);
    return identity == NULL ? NULL
                            : Py_BuildValue("(KK)N", (unsigned long long)words[0],
                                            (unsigned long long)words[1], identity);
}

/* ---- Quick: the first slice of an awaited call ---- */

typedef struct {
    Callee callee;
    Clock *clock;
    PyObject *failed; /* makes the exception of an error and a trap pointer */
    PyObject *hosts;  /* list of the store's that are plain, None for each other one */
    PyTypeObject *fiber_type;
} Quick;

#define SLICE_SECONDS 0.001 /* in which hosts are answered; drive.py and running.py know theirs */
#define STRETCH_SECONDS 0.02

/* Make the fiber of a call that is not over, and note it where it has to be known. */
static PyObject *
Quick_hand_over(Quick *self, PyObject *memory)
{
    head *own = (head *)PyBytes_AS_STRING(memory);
    Gate *gate = self->callee.gate;
    PyObject *key = NULL, *kept = NULL, *handed = NULL;
    Fiber *fiber = (Fiber *)self->fiber_type->tp_alloc(self->fiber_type, 0);
    if (fiber == NULL) {
        goto failed;
    }
    fiber->memory = Py_NewRef(memory);
    fiber->handle = Py_NewRef((PyObject *)gate);
    handed = PyWeakref_NewRef((PyObject *)fiber, NULL);
    key = PyLong_FromVoidPtr(own->future);
    kept = PyTuple_Pack(2, memory, Py_None);
    if (handed == NULL || key == NULL || kept == NULL ||
        futures_of(gate) == NULL || PyDict_SetItem(gate->futures, key, kept) < 0) {
        goto failed;
    }
    fiber->head = own;
    Py_XSETREF(gate->handed, handed);
    gate->quick = false; /* until its operation is over */
    gate->handed_by = PyThread_get_thread_ident();
    Py_DECREF(key);
    Py_DECREF(kept);
    return (PyObject *)fiber;
failed:
    api.delete(own->future); /* the caller is inside */
    own->future = NULL;
    Py_XDECREF(handed);
    Py_XDECREF(key);
    Py_XDECREF(kept);
    Py_XDECREF(fiber);
    return NULL;
}

/* Delete the future of a call that is over; the caller is inside. */
static int
forget_future(Gate *gate, head *own)
{
    PyObject *key = PyLong_FromVoidPtr(own->future);
    if (key == NULL) {
        return -1;
    }
    api.delete(own->future);
    own->future = NULL;
    int done = PyDict_DelItem(gate->futures, key);
    Py_DECREF(key);
    return done;
}

/*
 * Answer requests of hosts, of a call that nobody knows of yet; of those that suspend if `awaits`.
 *
 * Hosts see a call without an operation; should they need one, it is made (`HostCall.operation`),
 * and has the room from then on. Returns NULL if it is `done`, or with an exception; the fiber, if
 * it has to go on the long way; or the call, with what its host has returned or raised.
 */
static PyObject *
Quick_answer(Quick *self, PyObject *function, PyObject *given, PyObject *fiber, double end,
             bool awaits, bool *done)
{
    Gate *gate = self->callee.gate;
    head *own = ((Fiber *)fiber)->head;
    PyObject *result = NULL, *token = NULL, *begun = NULL;
    PyObject *call = NULL;
    for (;;) {
        /* Where the guest is gone, so is what it has given. */
        Host *host = is_there(gate, own) ? requested_host(own, self->hosts) : NULL;
        if (host == NULL || (host->suspending && !awaits)) {
            result = Py_NewRef(fiber);
            break;
        }
        if (token == NULL) {
            call = PyObject_CallFunctionObjArgs(call_type, Py_None, function, given, fiber, NULL);
            token = enter_call(call);
            if (token == NULL) {
                break;
            }
            Py_XSETREF(gate->answering, Py_NewRef(call));
        }
        Py_INCREF(host);
        Run run = run_host(own, host);
        bool ended = host->suspending && !run.goes_on;
        Py_XSETREF(begun, PyObject_GetAttr(call, name_begun));
        bool plain = begun == Py_False && answer_at_once(gate, own, host, &run);
        Py_DECREF(host);
        if (!plain && begun != NULL) {
            PyObject *outcome = outcome_of(&run, call);
            if (outcome != NULL && PyObject_SetAttr(call, name_outcome, outcome) == 0) {
                result = Py_NewRef(call);
            }
            Py_XDECREF(outcome);
        }
        if (run.goes_on && result != NULL) { /* whoever awaits the rest leaves the call */
            Py_CLEAR(gate->answering);
            Py_CLEAR(token);
            Py_CLEAR(call);
        }
        else if (plain && ended) { /* tasks that it has left behind are on their own */
            Py_CLEAR(gate->answering);
            leave_call(&call, &token);
        }
        clear_run(&run);
        if (!plain) {
            break;
        }
        if (fine_seconds() >= end) {
            result = Py_NewRef(fiber);
            break;
        }
        /* Another thread may look at something in there. */
        if (!wait_outside(gate)) {
            break;
        }
        if (gate->closing) {
            result = Py_NewRef(call != NULL ? call : fiber); /* its operation says so */
            break;
        }
        go_inside(gate, true);
        *done = poll_now(own);
        gate->roomless = false;
        int left = *done ? forget_future(gate, own) : 0;
        if (leave(gate) < 0 || left < 0) {
            *done = false;
            break;
        }
        if (*done || !own->requested) {
            result = *done ? NULL : Py_NewRef(fiber);
            break;
        }
    }
    if (token != NULL) {
        Py_CLEAR(gate->answering);
    }
    if (*done) {
        Py_CLEAR(gate->handed);
        gate->quick = true;
    }
    leave_call(&call, &token);
    Py_XDECREF(begun);
    return result;
}

static PyObject *
Quick_vectorcall(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Quick *self = (Quick *)callable;
    Callee *callee = &self->callee;
    const Signature *signature = &callee->signature;
    Gate *gate = callee->gate;
    Clock *clock = self->clock;
    Py_ssize_t passed = PyVectorcall_NARGS(flags);
    if (passed < 2 || passed > 3 || !PyTuple_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError,
                        "expected a function, a tuple, and whether the call is awaited");
        return NULL;
    }
    PyObject *given = args[1];
    bool awaited = passed == 2 || args[2] != Py_False;
    Py_ssize_t count = PyTuple_GET_SIZE(given);
    if (!gate->quick || !is_free(gate) || gate->standing || clock->parked || clock->manual ||
        (gate->hosted && !gate->waitable) || count != signature->parameters ||
        (awaited && streak(clock, false) != 0)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    PyObject *result = NULL,
             *memory = PyBytes_FromStringAndSize(
                 NULL, sizeof(head) + VAL_BYTES * (signature->parameters + signature->results));
    if (memory == NULL) {
        return NULL;
    }
    head *own = (head *)PyBytes_AS_STRING(memory);
    unsigned char *values = (unsigned char *)(own + 1);
    memset(own, 0, sizeof(head));
    for (Py_ssize_t index = 0; index < count; index++) {
        unsigned char *to = values + VAL_BYTES * index;
        char letter = signature->letters[index];
        if (!encode(letter, PyTuple_GET_ITEM(given, index), to + 8)) {
            Py_DECREF(memory);
            Py_RETURN_NOTIMPLEMENTED;
        }
        memset(to, 0, 8);
        to[0] = kinds[(unsigned char)letter];
    }
    unsigned char *returned = values + VAL_BYTES * count;
    memset(returned, 0, VAL_BYTES * signature->results);
    own->function[0] = callee->function[0];
    own->function[1] = callee->function[1];
    own->guarded = gate->guarded;
    own->gate = gate;
    Py_INCREF(self); /* the guest may outlive every other reference */
    begin_yielding(gate);
    gate->near = gate->soon = true;
    api.set_deadline(gate->context, NEAR); /* from now on: the last one may be long over */
    clock->needed = true;
    go_inside(gate, true);
    head *previous = here.polled;
    here.polled = own;
    PyThreadState *thread = PyEval_SaveThread();
    own->future = api.call_async(gate->context, own->function, values, count, returned,
                                 signature->results, (void **)&own->trap, (void **)&own->error);
    bool done = api.poll(own->future);
    if (done) {
        api.delete(own->future);
    }
    PyEval_RestoreThread(thread);
    here.polled = previous;
    gate->roomless = false;
    if (awaited) {
        turn.last = clock->ticks;
    }
    bool alone = gate->quick; /* else somebody has come meanwhile, who may get the room first */
    if (!done) {
        result = Quick_hand_over(self, memory);
    }
    if (leave(gate) < 0) {
        Py_CLEAR(result);
        goto leave;
    }
    if (!done && result != NULL && own->requested && !gate->guarded && alone) {
        double end = fine_seconds() + (awaited ? SLICE_SECONDS : STRETCH_SECONDS);
        PyObject *fiber = result;
        result = Quick_answer(self, args[0], given, fiber, end, awaited, &done);
        Py_DECREF(fiber);
        if (awaited) {
            turn.last = clock->ticks;
        }
    }
    if (!done) {
        goto leave;
    }
    if (own->error || own->trap) {
        raise_made(PyObject_CallFunction(self->failed, "KK", (unsigned long long)own->error,
                                         (unsigned long long)own->trap));
        goto leave;
    }
    result = decode_results(signature, returned + 8, VAL_BYTES);
leave:
    Py_DECREF(memory);
    Py_DECREF(self);
    return result;
}

/* Quick(gate, function, parameters, results, clock, failed, hosts, fiber type) */
static PyObject *
Quick_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *const *given = ((PyTupleObject *)args)->ob_item;
    if (PyTuple_GET_SIZE(args) != 8 || !PyObject_TypeCheck(given[0], &Gate_Type) ||
        !Py_IS_TYPE(given[4], &Clock_Type) || !PyType_Check(given[7]) ||
        !PyType_IsSubtype((PyTypeObject *)given[7], &Fiber_Type)) {
        PyErr_SetString(PyExc_TypeError, "Quick(gate, function, parameters, results, "
                                         "clock, failed, hosts, fiber type)");
        return NULL;
    }
    Quick *self = (Quick *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->callee.vectorcall = Quick_vectorcall;
    self->callee.gate = (Gate *)Py_NewRef(given[0]);
    self->clock = (Clock *)Py_NewRef(given[4]);
    self->failed = Py_NewRef(given[5]);
    self->hosts = Py_NewRef(given[6]);
    self->fiber_type = (PyTypeObject *)Py_NewRef(given[7]);
    if (!take_callee(&self->callee, given)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
Quick_traverse(Quick *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callee.gate);
    Py_VISIT(self->failed);
    Py_VISIT(self->hosts);
    return 0;
}

static int
Quick_clear(Quick *self)
{
    Py_CLEAR(self->failed);
    return 0;
}

static void
Quick_dealloc(Quick *self)
{
    PyObject_GC_UnTrack(self);
    Quick_clear(self);
    Py_CLEAR(self->callee.gate);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->hosts);
    Py_CLEAR(self->fiber_type);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Quick_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "asyncwasm._speedups.Quick",
    .tp_basicsize = sizeof(Quick),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = Quick_new,
    .tp_dealloc = (destructor)Quick_dealloc,
    .tp_traverse = (traverseproc)Quick_traverse,
    .tp_clear = (inquiry)Quick_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Callee, vectorcall),
};

/* ---- the module ---- */

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
    {"bind_calls", bind_calls, METH_VARARGS, NULL},
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
