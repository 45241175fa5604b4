# cython: language_level=3, boundscheck=False, wraparound=False
"""``PredictResponse`` and ``PBResponse``, each into one bytes object."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from procserver.errors import PredictFailed

from cython_ext.column cimport STRING, Column, ColumnView, cell_is_null
from cython_ext.wire_reader cimport LEN
from cython_ext.wire_writer cimport Tensors, field_size, put_bytes, put_head


def encode_torch(outputs):
    """Writes a ``PredictResponse``: a mapping by name, a sequence by position.

    :raises PredictFailed: if an output's dtype has no place in the protocol
    """
    cdef Tensors tensors = Tensors.__new__(Tensors)
    cdef int64_t total = tensors.measure(outputs)
    cdef uint8_t *p
    cdef uint8_t tag = 1 << 3 | LEN if tensors._names is None else 2 << 3 | LEN
    if total > INT32_MAX:
        raise PredictFailed("the response is over 2 GiB")
    body = PyBytes_FromStringAndSize(NULL, total)
    p = tensors.write(<uint8_t *>PyBytes_AS_STRING(body), tag)
    assert p == <uint8_t *>PyBytes_AS_STRING(body) + total
    return body


cdef list items_of(texts):
    """The items of a mapping; None if it is None or empty."""
    return list(texts.items()) if texts else None


cdef int64_t measure_texts(list texts) except -1:
    """Bytes of a ``map<string, string>``, given its items or None."""
    cdef Py_ssize_t key, value
    cdef int64_t total = 0
    if texts is None:
        return 0
    for name, text in texts:
        PyUnicode_AsUTF8AndSize(name, &key)
        PyUnicode_AsUTF8AndSize(text, &value)
        total += field_size(field_size(key) + field_size(value))
    return total


cdef uint8_t *put_texts(uint8_t *p, uint8_t tag, list texts) except NULL:
    cdef Py_ssize_t key, value
    cdef const char *name_data
    cdef const char *text_data
    if texts is None:
        return p
    for name, text in texts:
        name_data = PyUnicode_AsUTF8AndSize(name, &key)
        text_data = PyUnicode_AsUTF8AndSize(text, &value)
        p = put_head(p, tag, field_size(key) + field_size(value))
        p = put_bytes(p, 1 << 3 | LEN, name_data, key)
        p = put_bytes(p, 2 << 3 | LEN, text_data, value)
    return p


cdef inline int64_t id_length(const ColumnView *ids, int64_t row) noexcept nogil:
    if cell_is_null(ids, row):
        return 0
    return ids.values.offsets[row + 1] - ids.values.offsets[row]


cdef int64_t measure_ids(const ColumnView *ids, bint *short_ids) noexcept nogil:
    """Bytes of the ids; notes if none is null or needs a long length."""
    cdef const int32_t *offsets = ids.values.offsets
    cdef int64_t total = 0, row
    cdef uint32_t lengths = 0
    for row in range(ids.rows):
        lengths |= <uint32_t>(offsets[row + 1] - offsets[row])
    short_ids[0] = ids.valid == NULL and lengths < 0x80
    if short_ids[0]:
        return 2 * ids.rows + offsets[ids.rows] - offsets[0]
    for row in range(ids.rows):
        total += field_size(id_length(ids, row))
    return total


cdef uint8_t *put_ids(
    uint8_t *p, const uint8_t *end, const ColumnView *ids, bint short_ids
) noexcept nogil:
    """Writes the ids; ``end`` is where the response ends."""
    cdef int64_t row = 0, n
    cdef const int32_t *offsets = ids.values.offsets
    cdef const char *data = <const char *>ids.values.data
    cdef const char *data_end = data + offsets[ids.rows]
    cdef const char *text
    while short_ids and row < ids.rows:
        n = offsets[row + 1] - offsets[row]
        text = data + offsets[row]
        p[0] = 4 << 3 | LEN
        p[1] = <uint8_t>n
        if n <= 16 and end - p >= 18 and data_end - text >= 16:
            # PERF: one fixed copy; what is too much is overwritten next.
            memcpy(p + 2, text, 16)
        else:
            memcpy(p + 2, text, n)
        p += 2 + n
        row += 1
    while row < ids.rows:
        p = put_bytes(p, 4 << 3 | LEN, data + offsets[row], id_length(ids, row))
        row += 1
    return p


def encode_torchrec(
    outputs, Column item_ids, generate_features, raw_features, pass_through
):
    """Writes a ``PBResponse`` into one bytes object, field by field in order.

    :raises PredictFailed: if an output's dtype has no place in the protocol
    :raises TypeError: if the ids are not a column of text
    """
    cdef Tensors tensors = Tensors.__new__(Tensors)
    cdef list generated = items_of(generate_features)
    cdef list raw = items_of(raw_features)
    cdef list passed = items_of(pass_through)
    cdef const ColumnView *ids = NULL
    cdef bint short_ids = False
    cdef int64_t total = tensors.measure(outputs)
    cdef uint8_t *p
    cdef const uint8_t *end
    total += measure_texts(generated)
    total += measure_texts(raw)
    total += measure_texts(passed)
    if item_ids is not None and item_ids.view.rows:
        ids = &item_ids.view
        if ids.kind != STRING:
            raise TypeError(f"item ids are {item_ids.kind.name}, not STRING")
        total += measure_ids(ids, &short_ids)
    if total > INT32_MAX:
        raise PredictFailed("the response is over 2 GiB")
    body = PyBytes_FromStringAndSize(NULL, total)
    p = <uint8_t *>PyBytes_AS_STRING(body)
    end = p + total
    p = tensors.write(p, 1 << 3 | LEN)
    p = put_texts(p, 2 << 3 | LEN, generated)
    p = put_texts(p, 3 << 3 | LEN, raw)
    if ids != NULL:
        p = put_ids(p, end, ids, short_ids)
    p = put_texts(p, 5 << 3 | LEN, passed)
    assert p == end
    return body
