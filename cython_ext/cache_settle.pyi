from cython_ext.cache_events import Events
from cython_ext.cache_index import ItemIndex
from cython_ext.cache_overlay import Overlay

class Settlement(Events):
    huge_rows: int
    kept: int
    fresh: int
    heap: int
    upserted: int
    deleted: int
    stale: int
    def resolve(self, index: ItemIndex, overlay: Overlay, count: int) -> None: ...
