/* What everything here needs: the library, names, time, and the stack of a thread. */

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

#define INTERFACE 15 /* accelerator.py knows it too: raise both with each change of what is here */
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
static PyObject *name_active, *name_begun, *name_cancel_scope, *name_check, *name_children,
    *name_current, *name_detour, *name_gone, *name_greenlet, *name_outcome, *name_over, *name_pointer, *name_popitem,
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
