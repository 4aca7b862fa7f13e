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
    """
    void pe_fence() noexcept nogil
    bint pe_small(object number, long long *value) noexcept
    bint pe_add(long long a, long long b, long long *sum) noexcept
