/*
 * Clock: what advances the epoch of an engine, on a thread of its own; see clock.py.
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
    volatile int guests; /* on a thread's own stack; who is polled needs one tick a poll */
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

/* Whether somebody depends on the next tick. */
static bool
is_needed(const Clock *self)
{
    return self->needed || self->holders || self->guests > 0;
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

/* Advance the engines by so many ticks. Holds `beats`. */
static void
advance(Clock *self, double ticks)
{
    for (size_t index = 0; index < self->count; index++) {
        for (double done = 0; done < ticks; done++) {
            api.increment_epoch(self->engines[index]);
        }
    }
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
    if (!self->manual || self->unseen) {
        advance(self, due);
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
        if (is_needed(self)) {
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
                self->parked = !is_needed(self);
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

/* Advance the engines by a tick that is made by hand. */
static PyObject *
Clock_advance(Clock *self, PyObject *unused)
{
    PyThread_acquire_lock(beats, WAIT_LOCK);
    advance(self, 1);
    PyThread_release_lock(beats);
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
    {"advance", (PyCFunction)Clock_advance, METH_NOARGS, NULL},
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
