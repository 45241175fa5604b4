# cython: language_level=3, cdivision=True
"""Bucketizers (spec section 4) and normalizers (section 6)."""

from libc.math cimport log10
from libc.stdint cimport (
    INT64_MAX, UINT64_MAX, int32_t, int64_t, uint32_t, uint64_t)
from libc.string cimport memcmp, memcpy, memset

from cython_ext.arena cimport Arena, Block, block_alloc
from cython_ext.fg_expr cimport Program, load_program, run_scalar

cdef extern from "math.h" nogil:
    float logf(float x)

KINDS = {
    "std_hash": BUCKET_STD_HASH, "farm_hash": BUCKET_FARM_HASH,
    "vocab": BUCKET_VOCAB, "number": BUCKET_NUMBER, "boundaries": BUCKET_BOUNDARIES,
}
METHODS = {
    "log10": NORMAL_LOG10, "zscore": NORMAL_ZSCORE, "minmax": NORMAL_MINMAX,
    "expression": NORMAL_EXPRESSION,
}


# ------------------------------------------------------------- vocabularies

cdef inline Word *_slot(
    const Bucketizer *b, uint64_t hash_, const char *p, int64_t length
) noexcept nogil:
    """The word's slot, or the free slot where it would go."""
    cdef uint64_t at = hash_ & b.mask
    cdef Word *word
    while True:
        word = &b.words[at]
        if word.text == NULL or (
            word.hash == hash_ and word.length == length
            and memcmp(word.text, p, length) == 0
        ):
            return word
        at = (at + 1) & b.mask


cdef int64_t find_word(
    const Bucketizer *b, const char *p, int64_t length
) noexcept nogil:
    """The word's id, or the fallback."""
    cdef Word *word = _slot(b, std_hash(p, length), p, length)
    return b.fallback if word.text == NULL else word.id


cdef int _load_vocab(Bucketizer *b, Block **head, dict words) except -1:
    cdef uint64_t slots = 8
    cdef bytes text
    cdef char *copy
    cdef Word *word
    cdef int64_t length
    cdef uint64_t hash_
    while slots < 2 * <uint64_t>len(words) + 2:
        slots *= 2
    b.mask = slots - 1
    b.words = <Word *>block_alloc(head, slots * sizeof(Word))
    memset(b.words, 0, slots * sizeof(Word))
    total = sum(len(text) for text in words)
    copy = <char *>block_alloc(head, total)
    for text, number in words.items():
        length = len(text)
        memcpy(copy, <const char *>text, length)
        hash_ = std_hash(copy, length)
        word = _slot(b, hash_, copy, length)
        word.hash = hash_
        word.text = copy
        word.length = length
        word.id = number
        copy += length
    return 0


cdef int load_bucketizer(Bucketizer *b, Block **head, object spec) except -1:
    """Copies ``(kind, size, fallback, words or boundaries)`` (None: no bucketizer)."""
    cdef float *bounds
    cdef int64_t i
    memset(b, 0, sizeof(Bucketizer))
    if spec is None:
        return 0
    kind, size, fallback, table = spec
    b.kind = KINDS[kind]
    b.size = size
    b.fallback = fallback
    if b.kind == BUCKET_VOCAB:
        _load_vocab(b, head, table)
    elif b.kind == BUCKET_BOUNDARIES:
        b.bounds_count = len(table)
        bounds = <float *>block_alloc(head, b.bounds_count * sizeof(float))
        for i in range(b.bounds_count):
            bounds[i] = <float><double>table[i]
        b.bounds = bounds
    elif not 0 < b.size <= <uint64_t>INT64_MAX:
        raise ValueError(f"a bucketizer of {size} buckets")
    else:
        b.reciprocal = UINT64_MAX // b.size
    return 0


# --------------------------------------------------------------- normalizers

cdef float _log10f(float x) noexcept nogil:
    """log10 of a float32 as glibc's classic ``log10f`` computes it.

    NOTE: not correctly rounded on purpose; every step is float32 (section 6).
    """
    cdef uint32_t bits
    cdef int32_t k = 0
    cdef uint32_t i
    cdef float y
    cdef float z
    memcpy(&bits, &x, 4)
    if (bits & 0x7fffffffu) == 0:
        return -<float>33554432.0 / <float>0.0
    if bits & 0x80000000u:
        return (x - x) / <float>0.0
    if bits >= 0x7f800000u:
        return x + x
    if bits < 0x00800000u:
        k -= 25
        x = x * <float>33554432.0
        memcpy(&bits, &x, 4)
    k += <int32_t>(bits >> 23) - 127
    i = 1 if k < 0 else 0
    bits = (bits & 0x007fffffu) | ((0x7fu - i) << 23)
    y = <float>(k + <int32_t>i)
    memcpy(&x, &bits, 4)
    z = y * <float>7.9034151668e-07 + <float>4.3429449201e-01 * logf(x)
    return z + y * <float>3.0102920532e-01


cdef float normalize_single(const Normalizer *n, float x) noexcept nogil:
    """The numeric-column path: every step in float32."""
    if n.kind == NORMAL_LOG10:
        return _log10f(x) if x > n.first else n.second
    if n.kind == NORMAL_ZSCORE:
        return (x - n.first) / n.second
    if n.kind == NORMAL_MINMAX:
        return (x - n.first) / (n.second - n.first)
    if n.kind == NORMAL_EXPRESSION:
        # NOTE(6): expressions are double arithmetic throughout (section 7).
        return <float>run_scalar(n.program, x)
    return x


cdef float normalize_double(const Normalizer *n, double x) noexcept nogil:
    """The text path: steps in double, parameters float32, one final cast."""
    cdef float span
    if n.kind == NORMAL_LOG10:
        return <float>log10(x) if x > <double>n.first else n.second
    if n.kind == NORMAL_ZSCORE:
        return <float>((x - <double>n.first) / <double>n.second)
    if n.kind == NORMAL_MINMAX:
        span = n.second - n.first
        return <float>((x - <double>n.first) / <double>span)
    if n.kind == NORMAL_EXPRESSION:
        return <float>run_scalar(n.program, x)
    return <float>x


cdef int load_normalizer(Normalizer *n, Block **head, object spec) except -1:
    """Copies ``(method, first, second)`` (None: no normalizer).

    Of ``expression``, ``first`` is the program and ``second`` is not used.
    """
    cdef Program *program
    memset(n, 0, sizeof(Normalizer))
    if spec is None:
        return 0
    method, first, second = spec
    n.kind = METHODS[method]
    if n.kind == NORMAL_EXPRESSION:
        program = <Program *>block_alloc(head, sizeof(Program))
        load_program(program, head, first)
        if program.variables != 1 or program.scopes != 1:
            raise ValueError("a normalizer is an expression in one number")
        n.program = program
        return 0
    n.first = <float><double>first
    n.second = <float><double>second
    return 0


# ------------------------------------------------------------- Python's face

cdef class BucketTable:
    """One bucketizer by itself: ids of defaults, and for tests.

    ``spec``: ``(kind, size, fallback, table)``: kind ``std_hash``,
    ``farm_hash`` or ``number`` (size buckets), ``vocab`` (table: dict of bytes
    to id, others get ``fallback``) or ``boundaries`` (table: ascending floats).
    """

    cdef Arena _arena
    cdef Bucketizer _bucketizer

    def __init__(self, spec) -> None:
        self._arena = Arena()
        load_bucketizer(&self._bucketizer, &self._arena._head, spec)
        if self._bucketizer.kind == BUCKET_NONE:
            raise ValueError("no bucketizer")

    def of_text(self, bytes text not None) -> int:
        """The id of a text token."""
        return bucket_text(&self._bucketizer, text, len(text))

    def of_integer(self, int64_t value) -> int:
        """The id of an integer."""
        return bucket_integer(&self._bucketizer, value)

    def of_number(self, double value, *, bint single=False) -> int:
        """The id of a float (``single``: a float32)."""
        return bucket_number(&self._bucketizer, value, single)


def normalize(spec, double value, *, bint double_path) -> float:
    """``value`` normalised by ``(method, first, second)``, as a float32."""
    cdef Normalizer n
    cdef Arena arena = Arena()
    load_normalizer(&n, &arena._head, spec)
    if double_path:
        return normalize_double(&n, value)
    return normalize_single(&n, <float>value)
