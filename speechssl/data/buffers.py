"""Memory for waves that is used again: private to a process, or shared with a reading process.

Fresh memory costs the system a page fault per 4 KiB. FLAC decodes so fast (thousands of times
real time) that this alone is a tenth of reading, and far more where the memory is shared.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NewArray = Callable[[int, int], np.ndarray]
"""(rows, samples) -> uninitialised (rows, samples) float32."""

_ALIGN = 64
_SMALLEST_CHUNK = 1 << 20
_FEW = 4


class Pool:
    """Arrays whose memory is given out again once nothing refers to an earlier array in it.

    Views of an array, and tensors that share its memory, count as references to it.
    most: unused pieces of memory that are kept.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._free: list[bytearray] = []

    def __reduce__(self) -> tuple[type[Pool], tuple[int]]:
        return (Pool, (self.most,))

    def new(self, rows: int, samples: int) -> np.ndarray:
        """Uninitialised (rows, samples) float32."""
        size = max(rows * samples * 4, 1)
        memory = None
        for i, free in enumerate(self._free):
            if size <= len(free) <= 2 * size:
                memory = self._free.pop(i)
                break
        if memory is None:
            memory = bytearray(size + size // 4)
            # What lies free longest no longer fits what is asked for, unless there is little.
            del self._free[: max(len(self._free) > _FEW, len(self._free) - self.most)]
        # numpy makes the array at the end of the chain the base of every view. That is this one,
        # since its memory is no array: it lives until the last view is gone.
        array = np.ndarray((rows, samples), dtype=np.float32, buffer=memory)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


class SharedFile:
    """A file without a name that two processes map: memory only, apart from /dev/shm's limit.

    Containers often give /dev/shm 64 MB. memfd_create (Linux) is not bound to it; elsewhere an
    unlinked temporary file serves.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None and hasattr(os, "memfd_create"):
            fd = os.memfd_create("speechssl", os.MFD_CLOEXEC)
        elif fd is None:
            with tempfile.TemporaryFile(prefix="speechssl") as file:
                fd = os.dup(file.fileno())
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being started: a descriptor means nothing to any other reader.
        from multiprocessing import reduction

        return (_reopen, (reduction.DupFd(self.fd),))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def _reopen(duplicate: Any) -> SharedFile:
    return SharedFile(duplicate.detach())


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where in a shared file an array lies."""

    chunk: int
    offset: int
    rows: int
    samples: int


class Arena:
    """The writer's side of a shared file: arrays one behind the other, all dropped by `reset`.

    The file grows by chunks when a task needs more than any before it, and never shrinks.
    """

    def __init__(self, file: SharedFile) -> None:
        self.file = file
        self.sizes: list[int] = []
        self._maps: list[mmap.mmap] = []
        self._used: list[int] = []
        self._pieces: dict[int, tuple[np.ndarray, Piece]] = {}

    def reset(self) -> None:
        self._used = [0] * len(self.sizes)
        self._pieces.clear()

    def _take(self, size: int) -> tuple[int, int]:
        size = -(-max(size, 1) // _ALIGN) * _ALIGN
        for chunk, used in enumerate(self._used):
            if used + size <= self.sizes[chunk]:
                self._used[chunk] += size
                return chunk, used
        grain = mmap.ALLOCATIONGRANULARITY
        chunk_size = -(-max(size + size // 4, _SMALLEST_CHUNK) // grain) * grain
        begin = sum(self.sizes)
        os.ftruncate(self.file.fd, begin + chunk_size)
        self._maps.append(mmap.mmap(self.file.fd, chunk_size, offset=begin))
        self.sizes.append(chunk_size)
        self._used.append(size)
        return len(self.sizes) - 1, 0

    def new(self, rows: int, samples: int) -> np.ndarray:
        """Uninitialised (rows, samples) float32 in the file."""
        chunk, offset = self._take(rows * samples * 4)
        array = np.ndarray((rows, samples), np.float32, buffer=self._maps[chunk], offset=offset)
        self._pieces[id(array)] = array, Piece(chunk, offset, rows, samples)
        return array

    def piece(self, array: np.ndarray) -> Piece:
        """Where an array that `new` returned since the last `reset` lies."""
        return self._pieces[id(array)][1]

    def write(self, integers: np.ndarray) -> tuple[int, int, tuple[int, ...]]:
        """Store int64 of any shape; returns their chunk, offset and shape."""
        chunk, offset = self._take(integers.nbytes)
        place = np.ndarray(integers.shape, np.int64, buffer=self._maps[chunk], offset=offset)
        place[...] = integers
        return chunk, offset, integers.shape


class ArenaView:
    """The reader's side of a shared file."""

    def __init__(self, file: SharedFile) -> None:
        self.file = file
        self._maps: list[mmap.mmap] = []
        self._end = 0

    def grow(self, sizes: Sequence[int]) -> None:
        """Map the chunks that the writer has added; sizes: of all its chunks."""
        for size in sizes[len(self._maps) :]:
            self._maps.append(mmap.mmap(self.file.fd, size, offset=self._end))
            self._end += size

    def array(self, piece: Piece) -> np.ndarray:
        """The (rows, samples) float32 there; valid until the writer's next `reset`."""
        shape = (piece.rows, piece.samples)
        return np.ndarray(shape, np.float32, buffer=self._maps[piece.chunk], offset=piece.offset)

    def integers(self, place: tuple[int, int, tuple[int, ...]]) -> np.ndarray:
        """A copy of what `Arena.write` stored."""
        chunk, offset, shape = place
        return np.ndarray(shape, np.int64, buffer=self._maps[chunk], offset=offset).copy()
