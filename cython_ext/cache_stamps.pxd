# cython: language_level=3
"""Stamps: the event times of a row, in its heap bytes behind the cells.

Only rows that got events with a time have them (unaligned, little-endian)::

    u16 groups, then for each: i64 time, bitmap of what has that time

Bit i of a bitmap is column i; two more stand for the row itself (the latest event
that set it) and for its latest deletion. What is in no group has no time.
"""

from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy


cdef enum:
    STAMP_EXTRA = 2          # bits for the row and its deletion
    STAMP_HEAD = 2           # bytes of the count
    STAMP_TIME = 8


cdef inline int64_t no_time() noexcept nogil:
    return INT64_MIN


cdef inline int64_t stamps_size(int64_t groups, int64_t bitmap) noexcept nogil:
    return STAMP_HEAD + groups * (STAMP_TIME + bitmap)


cdef inline const char *stamps_at(
    const char *p, int64_t room, int64_t bitmap, int64_t *groups
) noexcept nogil:
    """The first group; NULL: they do not fit into ``room`` bytes."""
    cdef uint16_t count
    if room < STAMP_HEAD:
        return NULL
    memcpy(&count, p, STAMP_HEAD)
    groups[0] = count
    return NULL if stamps_size(count, bitmap) > room else p + STAMP_HEAD


cdef inline char *put_stamp_count(char *p, int64_t groups) noexcept nogil:
    cdef uint16_t count = <uint16_t>groups
    memcpy(p, &count, STAMP_HEAD)
    return p + STAMP_HEAD


cdef inline int64_t stamp_time(const char *group) noexcept nogil:
    cdef int64_t time
    memcpy(&time, group, STAMP_TIME)
    return time


cdef inline bint stamp_has(const char *group, int64_t bit) noexcept nogil:
    return ((<const uint8_t *>group)[STAMP_TIME + (bit >> 3)] >> (bit & 7)) & 1
