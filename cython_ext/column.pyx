# cython: language_level=3
"""The one column format: Arrow layout behind a C struct.

A column is ``rows`` cells of one :class:`Kind`. Buffers follow the Arrow
specification: validity bitmaps (least significant bit first), int32 offsets,
little-endian values, UTF-8 strings.
"""

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uintptr_t
from libc.string cimport memset

import numpy as np

cdef enum:
    FIRST_LIST = 21
    FIRST_LISTS = 26
    LAST_KIND = 30

# Order in which PBFeature numbers the value types inside maps and inside lists.
cdef int32_t[5] MAP_VALUES
MAP_VALUES[:] = [3, 1, 2, 4, 5]
cdef int32_t[5] LIST_VALUES
LIST_VALUES[:] = [1, 2, 3, 4, 5]
cdef int32_t[3] MAP_KEYS
MAP_KEYS[:] = [2, 3, 1]
cdef int64_t[6] WIDTHS
WIDTHS[:] = [0, 4, 8, 0, 4, 8]

NUMPY = {
    INT32: np.dtype(np.int32),
    INT64: np.dtype(np.int64),
    FLOAT32: np.dtype(np.float32),
    FLOAT64: np.dtype(np.float64),
}


cdef int32_t kind_shape(int32_t kind) noexcept nogil:
    if kind < MAP_INT64_STRING:
        return SCALAR
    if kind < FIRST_LIST:
        return MAP
    return LIST if kind < FIRST_LISTS else LISTS


cdef int32_t kind_value(int32_t kind) noexcept nogil:
    """The scalar kind of a cell's values (ABSENT for ABSENT)."""
    if kind < MAP_INT64_STRING:
        return kind
    if kind < FIRST_LIST:
        return MAP_VALUES[(kind - MAP_INT64_STRING) % 5]
    return LIST_VALUES[(kind - FIRST_LIST) % 5]


cdef int32_t kind_key(int32_t kind) noexcept nogil:
    """The scalar kind of a map's keys; NULL for everything else."""
    if kind < MAP_INT64_STRING or kind >= FIRST_LIST:
        return 0
    return MAP_KEYS[(kind - MAP_INT64_STRING) // 5]


cdef int64_t scalar_width(int32_t scalar) noexcept nogil:
    """Bytes of one fixed-width value; 0 for strings."""
    return WIDTHS[scalar]


def shape_of(int kind) -> Shape:
    """What a cell of ``kind`` holds."""
    return Shape(kind_shape(kind))


def value_kind(int kind) -> Kind:
    """The scalar kind of the values inside a cell of ``kind``."""
    return Kind(kind_value(kind))


def key_kind(int kind) -> Kind:
    """The scalar kind of a map's keys; ``Kind.ABSENT`` for everything else."""
    return Kind(kind_key(kind))


cdef Column wrap_column(const ColumnView *view, object owner):
    """A column over memory that ``owner`` keeps alive."""
    cdef Column column = Column.__new__(Column)
    column.view = view[0]
    column.owner = owner
    return column


cdef class Column:
    """``rows`` cells of one kind, in Arrow layout. Immutable once made."""

    def __cinit__(self):
        memset(&self.view, 0, sizeof(ColumnView))

    def __len__(self) -> int:
        return self.view.rows

    def __repr__(self) -> str:
        return f"<Column {self.kind.name} rows={self.view.rows}>"

    @property
    def kind(self) -> Kind:
        """Type of the cells."""
        return Kind(self.view.kind)

    @staticmethod
    def null(int64_t rows) -> Column:
        """A column of ``rows`` null cells, of no type."""
        cdef ColumnView view
        memset(&view, 0, sizeof(ColumnView))
        view.rows = rows
        return wrap_column(&view, None)

    @staticmethod
    def from_arrow(array) -> Column:
        """A view of an Arrow array or chunked array (copied only to widen).

        Taken as they are: int32, int64, float, double, string, lists and lists
        of lists of these, maps with int32, int64 or string keys; a null-typed
        array becomes ``Kind.ABSENT``. Widened without loss: int8, int16, uint8,
        uint16 and bool to int32, uint32 to int64, half to float, large and
        fixed-size variants, dictionaries.

        :raises TypeError: for any other type
        """
        return _from_arrow(array)

    @staticmethod
    def from_texts(texts) -> Column:
        """A STRING column of Python strings, without Arrow."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        data = b"".join(encoded)
        cdef ColumnView view
        memset(&view, 0, sizeof(ColumnView))
        view.kind = STRING
        view.rows = len(encoded)
        view.values.scalar = STRING
        view.values.length = view.rows
        view.values.offsets = <const int32_t *><uintptr_t>offsets.ctypes.data
        view.values.data = <const char *>data
        return wrap_column(&view, (offsets, data))

    def to_pylist(self) -> list:
        """Cells as Python objects; a map is a list of (key, value) pairs."""
        cdef ColumnView *v = &self.view
        cdef int64_t row
        cells = []
        for row in range(v.rows):
            if cell_is_null(v, row):
                cells.append(None)
            elif v.shape == SCALAR:
                cells.append(_value(&v.values, row))
            elif v.shape == LIST:
                cells.append(_span(&v.values, v.offsets[row], v.offsets[row + 1]))
            elif v.shape == MAP:
                keys = _span(&v.keys, v.offsets[row], v.offsets[row + 1])
                values = _span(&v.values, v.offsets[row], v.offsets[row + 1])
                cells.append(list(zip(keys, values, strict=True)))
            else:
                cells.append([
                    None if inner_is_null(v, i)
                    else _span(&v.values, v.inner[i], v.inner[i + 1])
                    for i in range(v.offsets[row], v.offsets[row + 1])
                ])
        return cells

    def slice(self, int64_t start, int64_t rows) -> Column:
        """The cells ``start`` to ``start + rows`` over the same memory.

        :raises IndexError: if the column has fewer cells
        """
        cdef ColumnView view = self.view
        if start < 0 or rows < 0 or start + rows > view.rows:
            raise IndexError(f"cells {start}:{start + rows} of {view.rows}")
        view.rows = rows
        view.valid_offset += start
        if view.kind == 0:
            return wrap_column(&view, self.owner)
        if view.shape == SCALAR:
            view.values.length = rows
            if view.values.scalar == STRING:
                view.values.offsets += start
            else:
                view.values.data = (
                    <const char *>view.values.data
                    + start * scalar_width(view.values.scalar))
        else:
            view.offsets += start
        return wrap_column(&view, self.owner)

    def nest(self) -> Column:
        """One cell that holds all cells: scalars as a list, lists as lists.

        A null cell becomes a null element. This is how item features gathered
        for a sequence of item ids become one sequence-valued user column.

        :raises TypeError: for maps and lists of lists, which do not nest further
        """
        cdef ColumnView view = self.view
        if view.rows > INT32_MAX:
            raise TypeError(f"{view.rows} cells do not fit one list")
        if view.kind == 0:
            return Column.null(1)
        if view.shape != SCALAR and view.shape != LIST:
            raise TypeError(f"{self.kind.name} cells do not nest into one list")
        cdef int32_t[2] span
        span[:] = [0, <int32_t>view.rows]
        cdef bytes offsets = (<char *>span)[:sizeof(span)]
        view.rows = 1
        view.valid = NULL
        view.valid_offset = 0
        if view.shape == SCALAR:
            view.kind = FIRST_LIST + view.values.scalar - 1
            view.shape = LIST
            view.values.valid = self.view.valid
            view.values.valid_offset = self.view.valid_offset
        else:
            view.kind = FIRST_LISTS + view.values.scalar - 1
            view.shape = LISTS
            view.inner = self.view.offsets
            view.inner_valid = self.view.valid
            view.inner_valid_offset = self.view.valid_offset
        view.offsets = <const int32_t *><const char *>offsets
        return wrap_column(&view, (self.owner, offsets))

    def elements(self, int64_t row) -> Column:
        """The elements of one list cell as a column of scalars (null: no row).

        :raises TypeError: if the cells are not lists of scalars
        """
        cdef ColumnView view = self.view
        if view.shape != LIST:
            raise TypeError(f"{self.kind.name} cells are not lists of scalars")
        if row < 0 or row >= view.rows:
            raise IndexError(f"cell {row} of {view.rows}")
        cdef int64_t start = view.offsets[row]
        view.rows = view.offsets[row + 1] - start
        if cell_is_null(&self.view, row):
            view.rows = 0
        view.kind = view.values.scalar
        view.shape = SCALAR
        view.offsets = NULL
        view.valid = view.values.valid
        view.valid_offset = view.values.valid_offset + start
        view.values.valid = NULL
        view.values.length = view.rows
        if view.values.scalar == STRING:
            view.values.offsets += start
        else:
            view.values.data = (
                <const char *>view.values.data
                + start * scalar_width(view.values.scalar))
        return wrap_column(&view, self.owner)


cdef object _value(const Values *v, int64_t i):
    cdef const char *text
    cdef int64_t length
    if value_is_null(v, i):
        return None
    if v.scalar == INT32:
        return (<const int32_t *>v.data)[i]
    if v.scalar == INT64:
        return (<const int64_t *>v.data)[i]
    if v.scalar == FLOAT32:
        return (<const float *>v.data)[i]
    if v.scalar == FLOAT64:
        return (<const double *>v.data)[i]
    text = string_at(v, i, &length)
    return text[:length].decode("utf-8", "surrogateescape")


cdef list _span(const Values *v, int64_t start, int64_t stop):
    return [_value(v, i) for i in range(start, stop)]


# ---------------------------------------------------------------- from Arrow

cdef object _WIDEN = None
cdef object _KINDS = None


cdef _load_arrow_tables():
    global _WIDEN, _KINDS
    import pyarrow as pa
    _WIDEN = {
        pa.int8(): pa.int32(), pa.int16(): pa.int32(), pa.uint8(): pa.int32(),
        pa.uint16(): pa.int32(), pa.bool_(): pa.int32(), pa.uint32(): pa.int64(),
        pa.float16(): pa.float32(), pa.large_string(): pa.string(),
        pa.string_view(): pa.string(), pa.binary(): pa.string(),
        pa.large_binary(): pa.string(),
    }
    _KINDS = {
        pa.int32(): INT32, pa.int64(): INT64, pa.string(): STRING,
        pa.float32(): FLOAT32, pa.float64(): FLOAT64,
    }


cdef object _accepted_type(type_):
    """The type that ``type_`` is read as."""
    import pyarrow as pa
    types = pa.types
    if type_ in _KINDS or types.is_null(type_):
        return type_
    if type_ in _WIDEN:
        return _WIDEN[type_]
    if types.is_dictionary(type_):
        return _accepted_type(type_.value_type)
    if types.is_list(type_) or types.is_large_list(type_) or (
        types.is_fixed_size_list(type_)
    ):
        return pa.list_(_accepted_type(type_.value_type))
    if types.is_map(type_):
        return pa.map_(
            _accepted_type(type_.key_type), _accepted_type(type_.item_type))
    raise TypeError(f"Arrow type {type_} is not one of the feature types")


def kind_of_arrow(type_) -> Kind:
    """The kind that a column of Arrow type ``type_`` becomes.

    :raises TypeError: if no kind holds it without loss
    """
    import pyarrow as pa
    if _KINDS is None:
        _load_arrow_tables()
    accepted = _accepted_type(type_)
    if pa.types.is_null(accepted):
        return Kind.ABSENT
    if accepted in _KINDS:
        return Kind(_KINDS[accepted])
    if pa.types.is_map(accepted):
        key, value = _KINDS.get(accepted.key_type), _KINDS.get(accepted.item_type)
        for kind in range(MAP_INT64_STRING, FIRST_LIST):
            if kind_key(kind) == (key or 0) and kind_value(kind) == (value or 0):
                return Kind(kind)
    elif pa.types.is_list(accepted):
        inner, first = accepted.value_type, FIRST_LIST
        if pa.types.is_list(inner):
            inner, first = inner.value_type, FIRST_LISTS
        # A list of nulls only is read as strings: every element is null.
        if pa.types.is_null(inner):
            inner = pa.string()
        if inner in _KINDS:
            return Kind(first + _KINDS[inner] - 1)
    raise TypeError(f"Arrow type {type_} is not one of the feature types")


cdef object _arrow_type(int32_t kind):
    import pyarrow as pa
    scalar = {code: type_ for type_, code in _KINDS.items()}
    cdef int32_t shape = kind_shape(kind)
    value = scalar[kind_value(kind)]
    if shape == SCALAR:
        return value
    if shape == LIST:
        return pa.list_(value)
    if shape == LISTS:
        return pa.list_(pa.list_(value))
    return pa.map_(scalar[kind_key(kind)], value)


def arrow_type(int kind):
    """The Arrow type whose layout a column of ``kind`` has."""
    import pyarrow as pa
    if _KINDS is None:
        _load_arrow_tables()
    return pa.null() if kind == 0 else _arrow_type(kind)


cdef const uint8_t *_address(buffer) except? NULL:
    return NULL if buffer is None else <const uint8_t *><uintptr_t>buffer.address


cdef int _fill_values(Values *out, array) except -1:
    """Points ``out`` at an Arrow array of scalars, its offset taken in."""
    buffers = array.buffers()
    cdef int64_t start = array.offset
    out.scalar = _KINDS[array.type]
    out.length = len(array)
    out.valid = _address(buffers[0]) if array.null_count else NULL
    out.valid_offset = start
    if out.scalar == STRING:
        out.offsets = <const int32_t *>_address(buffers[1]) + start
        out.data = _address(buffers[2])
    else:
        out.data = _address(buffers[1]) + start * scalar_width(out.scalar)
    return 0


cdef int32_t[1] NO_OFFSETS
NO_OFFSETS[0] = 0


cdef const int32_t *_offsets(array) except NULL:
    buffer = array.buffers()[1]
    if buffer is None or buffer.size == 0:
        return NO_OFFSETS
    return <const int32_t *>_address(buffer) + <int64_t>array.offset


cdef Column _from_arrow(array):
    import pyarrow as pa
    import pyarrow.compute as pc
    cdef ColumnView view
    memset(&view, 0, sizeof(ColumnView))
    if isinstance(array, pa.ChunkedArray):
        array = (
            array.chunk(0) if array.num_chunks == 1 else array.combine_chunks())
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
    kind = kind_of_arrow(array.type)
    view.kind = kind
    view.rows = len(array)
    if kind == Kind.ABSENT:
        return wrap_column(&view, None)
    wanted = _arrow_type(kind)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type != wanted:
        array = pc.cast(array, wanted)
    view.shape = kind_shape(kind)
    view.valid = _address(array.buffers()[0]) if array.null_count else NULL
    view.valid_offset = array.offset
    if view.shape == SCALAR:
        _fill_values(&view.values, array)
        # Validity of a scalar is the cell's own.
        view.values.valid = NULL
        _guard_empty(&view.values)
        return wrap_column(&view, array)
    view.offsets = _offsets(array)
    if view.shape == MAP:
        _fill_values(&view.keys, array.keys)
        _fill_values(&view.values, array.items)
        _guard_empty(&view.keys)
    elif view.shape == LIST:
        _fill_values(&view.values, array.values)
    else:
        inner = array.values
        view.inner = _offsets(inner)
        view.inner_valid = (
            _address(inner.buffers()[0]) if inner.null_count else NULL)
        view.inner_valid_offset = inner.offset
        _fill_values(&view.values, inner.values)
    _guard_empty(&view.values)
    return wrap_column(&view, array)


cdef int _guard_empty(Values *v) except -1:
    """Arrow leaves out the buffers of empty arrays; kernels want an address."""
    if v.scalar == STRING and (v.length == 0 or v.offsets == NULL):
        v.offsets = NO_OFFSETS
    if v.data == NULL:
        v.data = <const void *>NO_OFFSETS
    return 0
