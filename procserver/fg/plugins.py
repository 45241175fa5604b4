"""Operators of one's own for ``custom_feature``: the plug-in interface.

A plug-in is a Python or Cython package that names a factory in the entry point
group ``procserver.fg_operators``; the name of the entry point is the
``operator_name`` of ``fg.json``::

    [project.entry-points."procserver.fg_operators"]
    BucketOp = "my_package:BucketOp"

The factory is called once per feature with the whole entry (all keys, parameters
included) and gives an :class:`FgOperator`::

    class BucketOp:
        value_type = "float"

        def __init__(self, entry):
            self.edges = [float(x) for x in entry["bucket_threshold"].split(":")]

        def process(self, inputs):
            (numbers,) = inputs
            return [
                None if x is None else bisect.bisect(self.edges, float(x))
                for x in numbers
            ]

What it gives is normalised and bucketized as the entry asks, like the values of
any feature. ``operator_lib_file`` is ignored: a vendor's library is never loaded.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from procserver.errors import FgConfigError
from procserver.fg.entry import Entry

logger = logging.getLogger(__name__)

GROUP = "procserver.fg_operators"

Scalar: TypeAlias = str | int | float
Cell: TypeAlias = Scalar | list[Scalar | None] | dict[Scalar, Scalar | None] | None
Result: TypeAlias = Scalar | Sequence[Scalar | None] | None
Process: TypeAlias = Callable[[list[list[Cell]]], Sequence[Result]]


@runtime_checkable
class FgOperator(Protocol):
    """What a factory gives (spec section 8.16)."""

    @property
    def value_type(self) -> Literal["string", "float", "int64"]:
        """Type of the values, before normalizer and bucketizer."""

    def process(self, inputs: list[list[Cell]]) -> Sequence[Result]:
        """Computes one result per cell.

        :param inputs: for each entry of ``expression`` its cells, all lists of
            the same length. A cell is None if it is null or empty, else a text, a
            number, a list or a dict, as the column has it; text is not cut at the
            separator. In a sequence feature a cell is one element, and inputs
            that are no sequences are repeated for each.
        :return: one result per cell: a value, a list of values, or None or an
            empty list for the default value. Without a bucketizer, a numeric
            feature takes exactly ``value_dim`` values per cell.

        It is called once per request with the cells of all items (once with the
        one cell of the user where only user features are read). Calls do not
        overlap unless the entry says ``is_op_thread_safe``. An exception answers
        the request with ``predict_failed``.
        """


def load_operator(entry: Entry) -> tuple[FgOperator, Process]:
    """The operator that ``operator_name`` names, and how to call it.

    :raises FgConfigError: if no such entry point is installed, or if it fails
    """
    name = entry.text("operator_name")
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise entry.refuse(
            "operator_name",
            f"{name!r:.60} is neither built in nor an installed entry point of the "
            f"group {GROUP}",
        )
    if entry.has("operator_lib_file"):
        logger.info("feature %r: operator_lib_file is not loaded", entry.name)
    point = next(iter(found))
    if len({one.value for one in found}) > 1:
        raise entry.refuse(
            "operator_name", f"several packages name an entry point {name!r:.60}"
        )
    try:
        operator = point.load()(dict(entry.value))
    except FgConfigError:
        raise
    except Exception as error:  # whatever a plug-in raises refuses its feature
        raise entry.refuse(
            "operator_name", f"{name!r:.60} of {point.value} failed: {error!s:.200}"
        ) from error
    if not isinstance(operator, FgOperator) or operator.value_type not in (
        "string",
        "float",
        "int64",
    ):
        raise entry.refuse(
            "operator_name",
            f"{name!r:.60} of {point.value} is no operator: it needs value_type "
            "(string, float or int64) and process",
        )
    if entry.flag("is_op_thread_safe"):
        return operator, operator.process
    return operator, _one_at_a_time(operator.process)


def _one_at_a_time(process: Process) -> Process:
    lock = threading.Lock()

    def locked(inputs: list[list[Cell]]) -> Sequence[Result]:
        with lock:
            return process(inputs)

    return locked
