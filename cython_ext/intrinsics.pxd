# cython: language_level=3
"""What C offers and Cython does not: atomics, 128-bit product, prefetch."""

from libc.stdint cimport uint64_t


cdef extern from * nogil:
    """
    #include <stdatomic.h>
    #include <stdint.h>

    static inline uint64_t procserver_load_u64(const void *address) {
        return atomic_load_explicit(
            (const _Atomic uint64_t *)address, memory_order_acquire);
    }
    static inline void procserver_store_u64(void *address, uint64_t value) {
        atomic_store_explicit(
            (_Atomic uint64_t *)address, value, memory_order_release);
    }
    static inline uint64_t procserver_add_u64(void *address, uint64_t value) {
        return atomic_fetch_add_explicit(
            (_Atomic uint64_t *)address, value, memory_order_acq_rel);
    }
    static inline int procserver_swap_u64(
            void *address, uint64_t expected, uint64_t value) {
        return atomic_compare_exchange_strong_explicit(
            (_Atomic uint64_t *)address, &expected, value,
            memory_order_acq_rel, memory_order_acquire);
    }
    static inline uint64_t procserver_mul_high(uint64_t a, uint64_t b) {
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    }
    #define procserver_prefetch(address) __builtin_prefetch((address), 0, 3)
    """
    # Acquire load and release store of an aligned 64-bit word in shared memory.
    uint64_t load_u64 "procserver_load_u64"(const void *address)
    void store_u64 "procserver_store_u64"(void *address, uint64_t value)
    # Adds and returns what was there before.
    uint64_t add_u64 "procserver_add_u64"(void *address, uint64_t value)
    # Stores value if the word is as expected; whether it did.
    bint swap_u64 "procserver_swap_u64"(
        void *address, uint64_t expected, uint64_t value)
    # Upper half of the 128-bit product.
    uint64_t mul_high "procserver_mul_high"(uint64_t a, uint64_t b)
    # A hint: any address is harmless.
    void prefetch "procserver_prefetch"(const void *address)
