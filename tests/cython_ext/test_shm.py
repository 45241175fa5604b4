"""Maps: protection, growth, atomic words, and who keeps them open."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest

from cython_ext.shm import Mapping


@pytest.fixture
def fd():
    fd = os.memfd_create("test")
    os.posix_fallocate(fd, 0, 4096)
    yield fd
    os.close(fd)


def test_writes_are_shared_and_readers_see_them(fd: int) -> None:
    writer = Mapping(fd, 4096, writable=True)
    reader = Mapping(fd, 4096)
    memoryview(writer)[10:13] = b"abc"
    assert memoryview(reader)[10:13].tobytes() == b"abc"
    assert len(reader) == 4096
    assert writer.writable
    assert not reader.writable


def test_read_only_map_refuses_writes(fd: int) -> None:
    reader = Mapping(fd, 4096)
    with pytest.raises(TypeError):
        memoryview(reader)[0] = 1
    with pytest.raises(BufferError, match="read-only"):
        reader.store(0, 1)
    with pytest.raises(BufferError, match="read-only"):
        reader.add(0, 1)
    with pytest.raises(TypeError, match="not writable"):
        (ctypes.c_char * 4096).from_buffer(reader)


def test_the_kernel_enforces_read_only() -> None:
    script = """
import ctypes, os
import numpy as np
from cython_ext.shm import Mapping
fd = os.memfd_create("t"); os.posix_fallocate(fd, 0, 4096)
m = Mapping(fd, 4096)
ctypes.memset(np.frombuffer(m, dtype=np.uint8).ctypes.data, 1, 1)
print("written")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGSEGV
    assert "written" not in done.stdout


def test_a_map_becomes_read_only(fd: int) -> None:
    one, other = Mapping(fd, 4096, writable=True), Mapping(fd, 4096, writable=True)
    view = memoryview(one)
    with pytest.raises(BufferError, match="exported"):
        one.protect()
    view.release()
    one.store(8, 5)
    one.protect()
    assert not one.writable
    with pytest.raises(BufferError, match="read-only"):
        one.store(8, 6)
    other.store(8, 7)
    assert one.load(8) == 7
    script = """
import ctypes, os
import numpy as np
from cython_ext.shm import Mapping
fd = os.memfd_create("t"); os.posix_fallocate(fd, 0, 4096)
m = Mapping(fd, 4096, writable=True)
address = np.frombuffer(m, dtype=np.uint8).ctypes.data
ctypes.memset(address, 1, 1)
print("written", flush=True)
m.protect()
ctypes.memset(address, 1, 1)
print("again")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "written\n")


def test_what_is_written_copy_on_write_stays_here(fd: int) -> None:
    writer = Mapping(fd, 4096, writable=True)
    memoryview(writer)[:3] = b"abc"
    ours = Mapping(fd, 4096, copy_on_write=True)
    theirs = Mapping(fd, 4096, copy_on_write=True)
    assert ours.writable
    memoryview(ours)[:1] = b"x"
    assert memoryview(ours)[:3].tobytes() == b"xbc"
    assert memoryview(theirs)[:3].tobytes() == b"abc"
    assert memoryview(writer)[:3].tobytes() == b"abc"
    assert os.pread(fd, 3, 0) == b"abc"


def test_words_are_checked(fd: int) -> None:
    mapping = Mapping(fd, 4096, writable=True)
    mapping.store(4088, 2**64 - 1)
    assert mapping.load(4088) == 2**64 - 1
    assert mapping.add(8, 5) == 0
    assert mapping.load(8) == 5
    for offset in (-8, 4, 4089, 4096, 2**62):
        with pytest.raises(IndexError):
            mapping.load(offset)


def test_a_map_lives_as_long_as_its_views(fd: int) -> None:
    mapping = Mapping(fd, 4096, writable=True)
    memoryview(mapping)[:3] = b"xyz"
    view = memoryview(mapping)
    del mapping
    assert view[:3].tobytes() == b"xyz"


def test_resize_grows_and_refuses_while_exported(fd: int) -> None:
    mapping = Mapping(fd, 4096, writable=True)
    mapping.store(0, 42)
    view = memoryview(mapping)
    with pytest.raises(BufferError, match="exported"):
        mapping.resize(8192)
    view.release()
    os.posix_fallocate(fd, 4096, 1 << 20)
    mapping.resize(1 << 20)
    assert len(mapping) == 1 << 20
    assert mapping.load(0) == 42
    mapping.store((1 << 20) - 8, 1)


def test_wrong_sizes_and_descriptors(fd: int) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="map of"):
            Mapping(fd, size)
    with pytest.raises(OSError, match="descriptor"):
        Mapping(-1, 4096)


def test_unmapped_when_the_last_reference_goes() -> None:
    fd = os.memfd_create("procserver-unmapped")
    os.posix_fallocate(fd, 0, 4096)
    mapping = Mapping(fd, 4096)
    os.close(fd)
    with open("/proc/self/maps") as maps:
        assert "procserver-unmapped" in maps.read()
    del mapping
    with open("/proc/self/maps") as maps:
        assert "procserver-unmapped" not in maps.read()


def test_swap_is_conditional(fd: int) -> None:
    map_ = Mapping(fd, 4096, writable=True)
    map_.store(8, 5)
    assert not map_.swap(8, 4, 9)
    assert map_.load(8) == 5
    assert map_.swap(8, 5, 2**64 - 1)
    assert map_.load(8) == 2**64 - 1
    with pytest.raises(IndexError):
        map_.swap(4096, 0, 1)
    with pytest.raises(BufferError, match="read-only"):
        Mapping(fd, 4096).swap(8, 0, 1)
