# cython: language_level=3
"""Bucketizers (spec section 4) and normalizers (section 6)."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from cython_ext.arena cimport Block
from cython_ext.fg_expr cimport Program
from cython_ext.fg_hash cimport (
    farm_hash, farm_hash_words, std_hash, std_hash_words)
from cython_ext.fg_text cimport (
    NUMBER_CHARS, PARSED, digit_words, format_double, format_float, format_int64,
    parse_double, parse_int64)


cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t fg_high_product(uint64_t a, uint64_t b) {
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    }
    """
    uint64_t fg_high_product(uint64_t a, uint64_t b) noexcept nogil


cdef enum BucketKind:
    BUCKET_NONE = 0
    BUCKET_STD_HASH = 1
    BUCKET_FARM_HASH = 2
    BUCKET_VOCAB = 3
    BUCKET_NUMBER = 4
    BUCKET_BOUNDARIES = 5


cdef enum NormalKind:
    NORMAL_NONE = 0
    NORMAL_LOG10 = 1
    NORMAL_ZSCORE = 2
    NORMAL_MINMAX = 3
    NORMAL_EXPRESSION = 4


ctypedef struct Word:
    uint64_t hash
    const char *text         # NULL: a free slot
    int64_t length
    int64_t id


ctypedef struct Bucketizer:
    int32_t kind
    uint64_t size            # hash buckets, or number of plain ids
    uint64_t reciprocal      # (2**64 - 1) // size
    int64_t fallback         # id of words that the vocabulary lacks
    uint64_t mask            # vocabulary: slots - 1
    Word *words
    int64_t bounds_count
    const float *bounds


ctypedef struct Normalizer:
    # LOG10: threshold, default; ZSCORE: mean, deviation; MINMAX: min, max
    int32_t kind
    float first
    float second
    const Program *program   # EXPRESSION


cdef int64_t find_word(
    const Bucketizer *b, const char *p, int64_t length) noexcept nogil
cdef float normalize_single(const Normalizer *n, float x) noexcept nogil
cdef float normalize_double(const Normalizer *n, double x) noexcept nogil
cdef int load_bucketizer(Bucketizer *b, Block **head, object spec) except -1
cdef int load_normalizer(Normalizer *n, Block **head, object spec) except -1


cdef inline int64_t bucket_hash(const Bucketizer *b, uint64_t h) noexcept nogil:
    """``h % size``.

    PERF: without a division. The quotient from the rounded-down reciprocal is at
    most one too small, and size < 2**63, so one correction is enough.
    """
    cdef uint64_t rest = h - fg_high_product(h, b.reciprocal) * b.size
    return <int64_t>(rest - b.size if rest >= b.size else rest)


cdef inline int64_t bucket_float(const Bucketizer *b, float x) noexcept nogil:
    """Number of boundaries at or below ``x`` (std::upper_bound)."""
    cdef const float *base = b.bounds
    cdef int64_t size = b.bounds_count
    cdef int64_t half
    # NOTE(4, boundaries of NaN): as std::upper_bound, NaN goes right of all.
    # PERF: no branch depends on the value.
    while size > 1:
        half = size >> 1
        base += half * (1 - <int64_t>(x < base[half - 1]))
        size -= half
    return (base - b.bounds) + (1 - <int64_t>(x < base[0]))


cdef inline int64_t bucket_in_range(const Bucketizer *b, int64_t v) noexcept nogil:
    # NOTE(14.3): out of range is 0: neither the default nor clamped.
    return v if v >= 0 and <uint64_t>v < b.size else 0


cdef inline int64_t bucket_truncated(const Bucketizer *b, double v) noexcept nogil:
    """``num_buckets`` of a float: truncated toward zero; NaN and infinity are 0."""
    if not (v > -9.2e18 and v < 9.2e18):
        return 0
    return bucket_in_range(b, <int64_t>v)


cdef inline int64_t bucket_text(
    const Bucketizer *b, const char *p, int64_t length
) noexcept nogil:
    """The id of a text token."""
    cdef int64_t integer = 0
    cdef double number = 0
    if b.kind == BUCKET_FARM_HASH:
        return bucket_hash(b, farm_hash(p, length))
    if b.kind == BUCKET_STD_HASH:
        return bucket_hash(b, std_hash(p, length))
    if b.kind == BUCKET_VOCAB:
        return find_word(b, p, length)
    if b.kind == BUCKET_NUMBER:
        # NOTE(4, num_buckets of unparsable text): id 0, like out of range.
        if parse_int64(p, length, &integer) != PARSED:
            return 0
        return bucket_in_range(b, integer)
    if parse_double(p, length, &number) != PARSED:
        return 0
    return bucket_float(b, <float>number)


cdef inline int64_t bucket_integer(const Bucketizer *b, int64_t v) noexcept nogil:
    """The id of an integer, which hashes as its decimal text."""
    cdef char[NUMBER_CHARS] text
    cdef uint64_t first = 0
    cdef uint64_t last = 0
    cdef int length
    if b.kind == BUCKET_NUMBER:
        return bucket_in_range(b, v)
    if b.kind == BUCKET_BOUNDARIES:
        return bucket_float(b, <float>v)
    # PERF: text that was just written byte by byte is slow to read back as
    # words, so the usual integers never leave the registers.
    if 0 <= v < <int64_t>10000000000000000 and b.kind != BUCKET_VOCAB:
        length = digit_words(<uint64_t>v, &first, &last)
        if b.kind == BUCKET_FARM_HASH:
            return bucket_hash(b, farm_hash_words(first, last, length))
        return bucket_hash(b, std_hash_words(first, last, length))
    return bucket_text(b, text, format_int64(v, text))


cdef inline int64_t bucket_number(
    const Bucketizer *b, double v, bint single
) noexcept nogil:
    """The id of a float (``single``: a float32), which hashes as its text."""
    cdef char[NUMBER_CHARS] text
    if b.kind == BUCKET_NUMBER:
        return bucket_truncated(b, v)
    if b.kind == BUCKET_BOUNDARIES:
        return bucket_float(b, <float>v)
    if single:
        return bucket_text(b, text, format_float(<float>v, text))
    return bucket_text(b, text, format_double(v, text))
