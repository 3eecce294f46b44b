"""Reading processes: each takes tasks and leaves what it read in memory that it uses again.

A process has one shared file (`buffers.Arena`) per task that may be ready, and uses them in turn.
It is sent the next task only after the training process has copied the oldest one out of its
file, so nothing that is still needed is ever written over, and no acknowledgement is needed.
Differs from torch's DataLoader, which makes new shared memory in /dev/shm for each batch.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

from speechssl.data.buffers import Arena, ArenaView, SharedFile
from speechssl.data.collate import Collator, Result, Task, finish

_LOOK_FOR_PARENT_SECONDS = 5.0


def read_in_workers(
    collator: Collator, items: Iterable[tuple[Task, Any]], num_workers: int, prefetch: int
) -> Iterator[tuple[Result, Any]]:
    """Results of the tasks in their order, each with what came along with its task.

    prefetch: tasks that each process works ahead, 1 or more.

    Raises what a process raised (`ValueError`, else `RuntimeError`), and `RuntimeError` if one
    was killed.
    """
    tasks = iter(items)
    workers = [_Worker(collator, prefetch) for _ in range(num_workers)]
    pending: deque[tuple[_Worker, Any]] = deque()

    def feed(worker: _Worker) -> None:
        item = next(tasks, None)
        if item is not None:
            worker.send(item[0])
            pending.append((worker, item[1]))

    try:
        for _ in range(prefetch):
            for worker in workers:
                feed(worker)
        while pending:
            worker, rest = pending.popleft()
            result = worker.receive()
            feed(worker)
            yield result, rest
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """The training process's side of one reading process."""

    def __init__(self, collator: Collator, prefetch: int) -> None:
        self._pool = collator.pool
        files = [SharedFile() for _ in range(prefetch)]
        self._views = [ArenaView(file) for file in files]
        self._received = 0
        self._connection, other = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=_serve, args=(collator, other, self._connection, files), daemon=True
        )
        self._process.start()
        # Else its death would not end our reading from it.
        other.close()
        # Before multiprocessing waits for its children when the program ends.
        self._stop = util.Finalize(
            self, _stop, (self._process, self._connection, files), exitpriority=10
        )

    def send(self, task: Task) -> None:
        try:
            self._connection.send(task)
        except OSError:
            raise self._died() from None

    def receive(self) -> Result:
        """The oldest result not yet received, copied out of the shared memory."""
        try:
            failed, message = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if failed:
            kind, text = message
            raise kind(text)
        view = self._views[self._received % len(self._views)]
        self._received += 1
        sizes, reading = message
        view.grow(sizes)
        for draft in reading.drafts:
            if draft is not None:
                draft.wave = view.array(draft.wave)
                draft.mixed = view.array(draft.mixed) if draft.touched else None
                draft.targets = {k: view.integers(p) for k, p in draft.targets.items()}
        return finish(reading, self._pool.new, copy=True)

    def _died(self) -> RuntimeError:
        self._process.join(1)
        return RuntimeError(
            f"num_workers: a reading process ended with exit code {self._process.exitcode}, want "
            "it to run as long as the training; -9 means that the system killed it, most often "
            "for lack of memory: lower num_workers, prefetch or max_batch_seconds"
        )

    def stop(self) -> None:
        self._stop()


def _stop(process: Any, connection: Connection, files: list[SharedFile]) -> None:
    connection.close()
    process.kill()  # it keeps nothing that would have to be put away
    process.join()
    for file in files:
        file.close()


def _serve(
    collator: Collator, connection: Connection, other: Connection, files: list[SharedFile]
) -> None:
    """Read the tasks that arrive until the other side is gone."""
    import torch

    other.close()  # a copy: with it here, the end of the training process would not be seen
    # The training process decides when to end; a signal to the whole group is meant for it.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)  # lhotse uses torch for some cuts
    # A collection would write to, and so copy, all that is shared with the training process.
    gc.freeze()
    parent = os.getppid()
    arenas = [Arena(file) for file in files]
    taken = 0
    while True:
        try:
            while not connection.poll(_LOOK_FOR_PARENT_SECONDS):
                if os.getppid() != parent:
                    return
            task = connection.recv()
            arena = arenas[taken % len(arenas)]
            taken += 1
            connection.send(_read(collator, task, arena))
        except (EOFError, OSError):
            return


def _read(collator: Collator, task: Task, arena: Arena) -> tuple[bool, Any]:
    """(False, (sizes of the file's chunks, reading)), or (True, (kind, text) of an error).

    All arrays are left in the arena: a message is so small that sending it never waits.
    """
    try:
        arena.reset()
        reading = collator.read(task, arena.new)
        for draft in reading.drafts:
            if draft is not None:
                draft.wave = arena.piece(draft.wave)
                draft.mixed = arena.piece(draft.mixed) if draft.touched else None
                draft.targets = {k: arena.write(a) for k, a in draft.targets.items()}
        return False, (tuple(arena.sizes), reading)
    except ValueError as error:
        return True, (ValueError, f"{error} (in a reading process)")
    except Exception:
        return True, (RuntimeError, f"a reading process failed:\n{traceback.format_exc()}")
