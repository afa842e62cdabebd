/*
 * Activation: a call on its thread's own stack, whose guest may call host functions.
 *
 * One of a function that is called again and again begins with the GIL held, which takes as long to
 * let go of and to take back as a short call does. At the next tick the guest lets go of it: so others
 * wait for it no longer than for a tick.
 *
 * While a host function runs, nobody is inside of the store, so that everything can be done with it
 * that can be done while a fiber waits, but two: on other threads nothing may begin, and the store is
 * not deleted, before the guest has gone on (`standing`). Exceptions that the guest must not see
 * are `raised` once it has been unwound.
 */

/* The base of exported functions; see direct.h. */
typedef struct {
    Callee callee;
    double hold_seconds;
    unsigned long long tick; /* of the last call */
    unsigned calls;          /* since then */
    bool brief;              /* whether so many of them fit into a tick that they are short */
    PyObject *hosts; /* the list of the store's, or NULL: not looked up yet */
    /* what Python knows of it, here because most functions are made, called once, and forgotten */
    PyObject *external, *name, *quick, *shape, *store;
} Direct;

static PyTypeObject Direct_Type;

typedef struct Activation {
    struct Activation *outer; /* of this thread */
    Direct *function;
    PyThreadState *thread; /* without the GIL; NULL: the guest holds it */
    bool holds;            /* whether it does, until the next tick */
    double since, looked;  /* when it has met the first tick, or 0; and looked for signals */
    PyObject *entry;       /* what `current_call` was at the beginning; NULL until a host has run */
    PyObject *call;        /* for whom hosts run, NULL until somebody asks */
    PyObject *raised;
} Activation;

#define SIGNAL_SECONDS 0.04 /* after which a guest on a thread's own stack looks for signals */

#define BRIEF_CALLS 64 /* in a tick */

/* Note one more call. */
static inline void
count_call(Direct *self, const Clock *clock)
{
    unsigned long long now = clock->ticks;
    if (now != self->tick) {
        self->brief = self->calls / BRIEF_CALLS >= now - self->tick;
        self->calls = 0;
        self->tick = now;
    }
    self->calls++;
}

/* Whether its guest may hold the GIL until the next tick: there is sure to be one. */
static inline bool
may_hold(const Direct *self)
{
    const Gate *gate = self->callee.gate;
    const Clock *clock = (const Clock *)gate->clock;
    return self->brief &&
           !(gate->lingers || gate->waits || gate->guarded || clock->parked || clock->manual);
}

/* Go inside with the clock running. Nobody is there. */
static inline void
run_on(Activation *self)
{
    Gate *gate = self->function->callee.gate;
    ((Clock *)gate->clock)->needed = true; /* before the look whether it is parked */
    self->holds = may_hold(self->function);
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
    double now = coarse_seconds();
    if (self->since == 0) {
        self->since = self->looked = now;
    }
    Gate *gate = self->function->callee.gate;
    /* A clock without engines has been stopped: the interpreter ends, and would end this thread. */
    if (now - self->looked >= SIGNAL_SECONDS && ((Clock *)gate->clock)->count) {
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
        self->looked = coarse_seconds();
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
