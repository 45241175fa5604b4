"""Reading one batch ahead of the build, on a thread of its own."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2


def read_ahead(
    items: Iterator[T], stop: Callable[[], None], depth: int = DEPTH
) -> Generator[T, None, None]:
    """The same items, of which up to ``depth`` wait to be taken.

    PERF: fetching and building overlap, each on a core, as both leave the GIL.

    :param stop: ends a read that waits; called where the reader is not used up
    :raises: what ``items`` raises, after the items before it
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not over.is_set():
            try:
                return waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item, None)
                if over.is_set():
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        over.set()
        if thread.is_alive():
            stop()
        thread.join()
