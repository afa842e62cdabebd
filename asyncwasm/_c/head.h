/* The memory of a fiber, and what the library calls while it runs. */

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
