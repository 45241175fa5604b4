# cython: language_level=3
"""A compiled Feature Generator plan: every feature of a request in one call.

:class:`CompiledPlan` is filled once, with :meth:`CompiledPlan.add` per feature in
an order that respects ``feature:`` references, and then run from any number of
threads at once: a run holds no Python object, gives the GIL away, and keeps all
its memory in an arena of its own, which the arrays that it returns keep alive.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

from cython_ext.arena cimport Arena, Block, block_alloc
from cython_ext.column cimport Column, ColumnView, wrap_column
from cython_ext.fg_bucket cimport BUCKET_NONE, load_bucketizer, load_normalizer
from cython_ext.fg_cells cimport (
    FORM_IDS, FORM_NUMBERS, FORM_TEXT, Output, finish_views, tile_output)
from cython_ext.fg_node cimport (
    ACCEPTS_LIST, ACCEPTS_LISTS, ACCEPTS_MAP, ACCEPTS_SCALAR, ORIGIN_CONST,
    ORIGIN_NODE, ORIGIN_SLOT, Call, Node, Source, load_operator)

# Operators register themselves when they are imported.
from cython_ext import fg_called  # no-cython-lint
from cython_ext import fg_combine  # no-cython-lint
from cython_ext import fg_combo  # no-cython-lint
from cython_ext import fg_distance  # no-cython-lint
from cython_ext import fg_formula  # no-cython-lint
from cython_ext import fg_id  # no-cython-lint
from cython_ext import fg_kv  # no-cython-lint
from cython_ext import fg_lookup  # no-cython-lint
from cython_ext import fg_mask  # no-cython-lint
from cython_ext import fg_match  # no-cython-lint
from cython_ext import fg_overlap  # no-cython-lint
from cython_ext import fg_raw  # no-cython-lint

from procserver.errors import BadFeature

cnp.import_array()

cdef enum:
    # How the values of an output are laid out as tensors.
    TENSOR_NONE = 0          # stub, or text, which no tensor holds
    TENSOR_SPARSE = 1
    TENSOR_DENSE = 2

cdef enum:
    # What a part says of a feature; 0: left out.
    PART_READ = 1            # run, for others that read it
    PART_EMITTED = 2

ctypedef struct Emitted:
    # What becomes of one node's output.
    int32_t tensor
    bint keys                # key_lengths are part of the contract
    bint one_row             # may stay at one row (user side)

ORIGINS = {"slot": ORIGIN_SLOT, "node": ORIGIN_NODE, "const": ORIGIN_CONST}
FORMS = {"ids": FORM_IDS, "text": FORM_TEXT, "numbers": FORM_NUMBERS}


cdef char *_copied(Block **head, bytes text) except NULL:
    """A NUL-terminated copy."""
    cdef int64_t length = len(text)
    cdef char *copy = <char *>block_alloc(head, length + 1)
    memcpy(copy, <const char *>text, length + 1)
    return copy


cdef cnp.ndarray _array(
    object owner, void *data, int kind, int64_t rows, int64_t width
):
    """A writable array over arena memory; two-dimensional if ``width``."""
    cdef cnp.npy_intp[2] shape
    cdef cnp.ndarray array
    shape[0] = rows
    shape[1] = width
    array = cnp.PyArray_SimpleNewFromData(2 if width else 1, shape, kind, data)
    cnp.set_array_base(array, owner)
    return array


cdef int _run_nodes(
    Call *call, Node **nodes, int64_t count, const Emitted *emitted,
    const char *part, bint tile
) except -1 nogil:
    """Runs every feature in order, then repeats one-row outputs as asked.

    ``part``: NULL, or 0 for each feature that is left out.
    """
    cdef int64_t i
    cdef Output *out
    for i in range(count):
        if part != NULL and not part[i]:
            continue
        out = &call.outputs[i]
        out.head = call.head
        out.name = nodes[i].name
        out.form = nodes[i].form
        out.sequence = nodes[i].sequence
        out.weighted = nodes[i].weighted
        out.width = nodes[i].width
        nodes[i].run(call, nodes[i], out)
        if nodes[i].consumed:
            finish_views(out)
    for i in range(count):
        if part != NULL and part[i] != PART_EMITTED:
            continue
        out = &call.outputs[i]
        if emitted[i].tensor and out.rows != call.rows and not (
            tile and emitted[i].one_row
        ):
            tile_output(out, call.rows)
    return 0


cdef class CompiledPlan:
    """Features compiled to C structs; see the module's text."""

    cdef Arena _arena
    cdef Node **_nodes
    cdef Emitted *_emitted
    cdef ColumnView *_consts
    cdef int64_t _count
    cdef int64_t _capacity
    cdef int64_t _slots
    cdef list _names
    cdef list _literals
    cdef list _slot_names
    cdef list _details

    def __init__(
        self, list slots not None, list literals not None, int64_t features
    ) -> None:
        """Room for ``features`` features over the input columns ``slots`` (names).

        ``literals``: one-row columns, the texts of ``const:`` inputs.
        """
        cdef int64_t i
        self._arena = Arena()
        self._slots = len(slots)
        self._slot_names = slots
        self._capacity = features
        self._nodes = <Node **>self._arena.alloc(features * sizeof(Node *))
        self._emitted = <Emitted *>self._arena.alloc(features * sizeof(Emitted))
        self._consts = <ColumnView *>self._arena.alloc(
            len(literals) * sizeof(ColumnView))
        self._names = []
        self._literals = literals
        self._details = []
        for i in range(len(literals)):
            self._consts[i] = (<Column?>literals[i]).view

    def add(
        self, str operator, str name, list sources, *, str form, int64_t value_dim,
        bint sequence=False, bint weighted=False, bytes separator=b"\x1d",
        bytes delim=b";", int64_t limit=0, bytes prefix=b"", default_text=None,
        int64_t default_id=0, default_numbers=(), bucketizer=None, normalizer=None,
        bint emit=True, bint keys=False, bint one_row=False, width=None,
        details=None,
    ) -> int:
        """Adds a feature; returns its number, by which later ones refer to it.

        ``sources``: ``(origin, index, sequence, takes_maps, label)`` with origin
        ``slot``, ``node`` or ``const``. ``form``: ``ids``, ``text`` or
        ``numbers``; text is never emitted as a tensor. ``one_row``: may stay at
        one row when a run does not tile. ``width``: columns of a dense row (by
        default ``value_dim``); 0 if each run computes it. ``details``: what the
        operator's loader takes; it is kept as long as the plan.
        """
        cdef Block **head = &self._arena._head
        cdef Node *node
        cdef Emitted *emitted
        cdef float *numbers
        cdef int64_t i
        cdef int64_t number = self._count
        if number == self._capacity:
            raise ValueError("more features than announced")
        if len(separator) != 1 or len(delim) != 1 or value_dim < 0 or limit < 0:
            raise ValueError(f"feature {name!r}: bad separator or count")
        node = <Node *>block_alloc(head, sizeof(Node))
        memset(node, 0, sizeof(Node))
        node.name = _copied(head, name.encode())
        node.form = FORMS[form]
        node.sequence = sequence
        node.weighted = weighted
        node.separator = separator[0]
        node.delim = delim[0]
        node.limit = limit
        node.value_dim = value_dim
        node.prefix = _copied(head, prefix)
        node.prefix_length = len(prefix)
        node.has_default = default_text is not None
        node.default_text = _copied(head, default_text or b"")
        node.default_length = len(default_text or b"")
        node.default_id = default_id
        load_bucketizer(&node.bucketizer, head, bucketizer)
        load_normalizer(&node.normalizer, head, normalizer)
        numbers = <float *>block_alloc(head, len(default_numbers) * sizeof(float))
        for i in range(len(default_numbers)):
            numbers[i] = <float><double>default_numbers[i]
        node.default_numbers = numbers
        node.default_count = len(default_numbers)
        node.width = value_dim or 1 if width is None else width
        node.dense = emit and node.form == FORM_NUMBERS
        self._add_sources(node, sources)
        load_operator(node, head, operator, details)
        if (node.form == FORM_IDS) != (
            node.gives_ids or node.bucketizer.kind != BUCKET_NONE
        ):
            raise ValueError(f"feature {name!r}: ids come from a bucketizer")
        self._details.append(details)
        emitted = &self._emitted[number]
        emitted.tensor = TENSOR_NONE
        if emit and node.form != FORM_TEXT:
            emitted.tensor = (
                TENSOR_DENSE if node.form == FORM_NUMBERS else TENSOR_SPARSE)
        emitted.keys = keys
        emitted.one_row = one_row
        self._nodes[number] = node
        self._names.append((
            f"{name}.values", f"{name}.lengths", f"{name}.key_lengths",
            f"{name}.weights"))
        self._count = number + 1
        return number

    cdef int _add_sources(self, Node *node, list sources) except -1:
        cdef Block **head = &self._arena._head
        cdef int64_t i
        cdef Source *source
        if not sources:
            raise ValueError("a feature without inputs")
        node.source_count = len(sources)
        node.sources = <Source *>block_alloc(head, len(sources) * sizeof(Source))
        for i in range(len(sources)):
            origin, index, sequence, takes_maps, label = sources[i]
            source = &node.sources[i]
            source.origin = ORIGINS[origin]
            source.index = index
            source.sequence = sequence
            source.accepts = ACCEPTS_SCALAR | ACCEPTS_LIST
            if sequence:
                source.accepts |= ACCEPTS_LISTS
            if takes_maps:
                source.accepts |= ACCEPTS_MAP
            source.label = _copied(head, label.encode())
            limit = (self._slots, self._count, len(self._literals))[source.origin]
            if not 0 <= index < limit:
                raise ValueError(f"source {label!r}: no {origin} {index}")
            if source.origin == ORIGIN_NODE:
                self._nodes[source.index].consumed = True
        return 0

    cdef Output *_run(
        self, Arena arena, list columns, int64_t rows, bint tile, bytes part=None
    ) except NULL:
        """The outputs of one run, in ``arena``."""
        cdef const char *wanted = NULL
        cdef ColumnView *slots
        cdef Output *outputs
        cdef Column column
        cdef Call call
        cdef int64_t i
        if len(columns) != self._slots or rows < 0:
            raise ValueError(f"{len(columns)} columns for {self._slots} slots")
        if part is not None:
            self._check_part(part)
            wanted = part
        slots = <ColumnView *>arena.alloc(self._slots * sizeof(ColumnView))
        outputs = <Output *>arena.alloc(self._count * sizeof(Output))
        memset(outputs, 0, self._count * sizeof(Output))
        for i in range(self._slots):
            column = columns[i]
            if column is None:
                memset(&slots[i], 0, sizeof(ColumnView))
                slots[i].rows = 1
                continue
            slots[i] = column.view
            if slots[i].rows >= rows and slots[i].rows != 1:
                slots[i].rows = rows
            elif slots[i].rows != 1:
                raise BadFeature(
                    f"input {self._slot_names[i]!r} has {slots[i].rows} rows, "
                    f"not {rows}")
        call.head = &arena._head
        call.slots = slots
        call.consts = self._consts
        call.outputs = outputs
        call.rows = rows
        with nogil:
            _run_nodes(
                &call, self._nodes, self._count, self._emitted, wanted, tile)
        return outputs

    cdef int _check_part(self, bytes part) except -1:
        """SAFETY: what a feature reads must have been run."""
        cdef int64_t i
        cdef int32_t k
        cdef Node *node
        if len(part) != self._count:
            raise ValueError(f"a part of {len(part)} of {self._count} features")
        for i in range(self._count):
            node = self._nodes[i]
            for k in range(node.source_count if part[i] else 0):
                if node.sources[k].origin == ORIGIN_NODE and (
                    not part[node.sources[k].index]
                ):
                    raise ValueError(f"a part lacks what feature {i} reads")
        return 0

    def run(
        self, list columns not None, int64_t rows, *, bint tile, bytes part=None
    ) -> dict:
        """The tensors of all features, by name.

        ``columns``: one per slot, of one row or at least ``rows`` rows (the
        first ``rows`` count); None is a column of nulls. With ``tile``, features
        marked ``one_row`` keep one row; all others get ``rows`` rows. ``part``: a
        byte per feature, 0 to leave it out, 1 to run it for others that read it,
        2 to have its tensors too; by default all of them.

        :raises BadFeature: a cell that its feature cannot take
        """
        cdef Arena arena = Arena()
        cdef Output *outputs = self._run(arena, columns, rows, tile, part)
        cdef Output *o
        cdef Emitted *emitted
        cdef int64_t i
        cdef tuple names
        tensors = {}
        for i in range(self._count):
            emitted = &self._emitted[i]
            if emitted.tensor == TENSOR_NONE or (
                part is not None and part[i] != PART_EMITTED
            ):
                continue
            o = &outputs[i]
            names = self._names[i]
            if emitted.tensor == TENSOR_DENSE:
                tensors[names[0]] = _array(
                    arena, o.numbers, cnp.NPY_FLOAT32,
                    o.count // o.width, o.width)
            else:
                tensors[names[0]] = _array(
                    arena, o.ids, cnp.NPY_INT64, o.count, 0)
            if emitted.tensor == TENSOR_SPARSE or o.sequence:
                tensors[names[1]] = _array(
                    arena, o.lengths, cnp.NPY_INT32, o.rows, 0)
            if emitted.keys:
                tensors[names[2]] = _array(
                    arena, o.key_lengths, cnp.NPY_INT32, o.keys, 0)
            if o.weighted:
                tensors[names[3]] = _array(
                    arena, o.weights, cnp.NPY_FLOAT32, o.count, 0)
        return tensors

    def compute(self, list columns not None, int64_t rows) -> None:
        """Runs all features and drops the results (to time the kernels alone)."""
        self._run(Arena(), columns, rows, False)

    def values(self, list columns not None, int64_t rows, list numbers) -> list:
        """The values of the features ``numbers`` as columns: what consumers read.

        A list per row; of a sequence, a list of lists per row.
        """
        cdef Arena arena = Arena()
        cdef Output *outputs = self._run(arena, columns, rows, True)
        cdef Output *o
        cdef int64_t i
        found = []
        for number in numbers:
            i = number
            if not 0 <= i < self._count:
                raise IndexError(i)
            o = &outputs[i]
            with nogil:
                finish_views(o)
            found.append(wrap_column(
                &o.nested if o.sequence else &o.flat, arena))
        return found
