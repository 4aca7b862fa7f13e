# What the compiled Updater needs from C and Cython has no words for. The interpreted twin has its own versions, in _updater.py.

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    #include <windows.h>
    #define pe_fence() MemoryBarrier()
    #else
    #define pe_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif

    /* The value of an exact int that is small enough for `slot + value` never to overflow where the slot is small too. */
    static CYTHON_INLINE int pe_small(PyObject *number, long long *value) {
        int overflow;
        if (!PyLong_CheckExact(number)) return 0;
        *value = PyLong_AsLongLongAndOverflow(number, &overflow);
        return !overflow;
    }

    /* a + b into *sum, or 0 where a long long cannot hold it. */
    static CYTHON_INLINE int pe_add(long long a, long long b, long long *sum) {
        if (b > 0 ? a > LLONG_MAX - b : a < LLONG_MIN - b) return 0;
        *sum = a + b;
        return 1;
    }

    /* The next item, or NULL with StopIteration or what the iterator raised; says whether there is one to be counted. */
    static CYTHON_INLINE PyObject *pe_next(PyObject *iterator, int *counting) {
        PyObject *item = Py_TYPE(iterator)->tp_iternext(iterator);
        *counting = item != NULL;
        if (!item && !PyErr_Occurred()) PyErr_SetNone(PyExc_StopIteration);
        return item;
    }
    #define PE_CONTROL 0
    #define PE_N 3
    """
    Py_ssize_t PE_CONTROL, PE_N
    object pe_next(object iterator, bint *counting)
    void pe_fence() noexcept nogil
    bint pe_small(object number, long long *value) noexcept
    bint pe_add(long long a, long long b, long long *sum) noexcept
