"""One operator over Arrow columns, as the operators' tests run it."""

from cython_ext.column import Column
from cython_ext.fg_hash import hash_text
from cython_ext.fg_plan import CompiledPlan

HASH = ("farm_hash", 1000, 0, None)


def h(text):
    return hash_text(text.encode(), farm=True) % 1000


def run(operator, arrays, rows=None, takes_maps=False, **options):
    names = [f"c{i}" for i in range(len(arrays))]
    plan = CompiledPlan(names, [], 1)
    sources = [("slot", i, False, takes_maps, f"user:{n}") for i, n in enumerate(names)]
    plan.add(operator, "f", sources, **{"value_dim": 0} | options)
    columns = [Column.from_arrow(array) for array in arrays]
    rows = rows if rows is not None else max(len(array) for array in arrays)
    tensors = plan.run(columns, rows, tile=False)
    return {name[2:]: array.tolist() for name, array in tensors.items()}
