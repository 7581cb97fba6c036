"""Split a range of work over the cores. Depends on ranges and functions; not on arrays, codecs or numba.

The work must release the GIL to run in parallel, and its parts must not depend on each other.
"""

import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

ENVIRONMENT = "FEDQ_CODEC_THREADS"
LARGEST_LIMIT = 256
# Maximum number of threads; None: FEDQ_CODEC_THREADS in the environment, else all usable cores.
limit: int | None = None

_PARTS_PER_THREAD = 4  # a busy core then delays the result by one part, not by its whole share
_lock = threading.Lock()
# One pool per process. A forked child must neither use nor collect its parent's pool: the threads do not exist in the
# child, and one of them may have held a lock.
_pools: dict[int, ThreadPoolExecutor] = {}


def threads() -> int:
    """The maximum number of threads that `split` uses, including the calling thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if limit is not None:
        return min(cores, _checked(limit, "fedq.codec.threads.limit"))
    value = os.environ.get(ENVIRONMENT, "")
    return min(cores, _checked(int(value) if value.isdecimal() else value, ENVIRONMENT)) if value else cores


def split(work: Callable[[int, int], T], count: int, *, grain: int) -> list[T]:
    """Call work(start, stop) on contiguous parts of 0..count; results in order. One thread only if count < 2 * grain.

    No part is smaller than `grain`, unless count is. If parts fail, one of their errors is raised after all other
    parts have stopped.

    >>> split(lambda start, stop: stop - start, 10, grain=100)
    [10]
    """
    if grain < 1:
        raise ValueError(f"grain={grain}: must be at least 1")
    helpers = min(threads(), count // grain) - 1
    if helpers < 1:
        return [work(0, count)]
    num_parts = min(count // grain, _PARTS_PER_THREAD * (helpers + 1))
    edges = [count * part // num_parts for part in range(num_parts + 1)]
    done: dict[int, T] = {}
    tickets = itertools.count()  # next() is atomic
    # Emptied at the end: a pool's thread may keep its last job, and all that the job refers to, for any time.
    held = [work]

    def take_parts() -> None:
        try:
            while (part := next(tickets)) < num_parts:
                done[part] = held[0](edges[part], edges[part + 1])
        except BaseException:
            for _ in range(num_parts):  # take the other tickets, so that no thread starts another part
                next(tickets)
            raise

    futures = _started(take_parts, helpers)
    try:
        take_parts()
    finally:
        # A copy that has not started has nothing left to do; waiting for it could be a deadlock.
        running = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in running]
        held.clear()
    for error in errors:
        if error is not None:
            raise error
    return [done[part] for part in range(num_parts)]


def _started(function: Callable[[], None], copies: int) -> list[Future[None]]:
    """Start as many copies as the system allows; maybe none, at interpreter exit or at the thread limit."""
    futures: list[Future[None]] = []
    if sys.is_finalizing():  # pools accept no more work
        return futures
    try:
        with _lock:
            pool = _pools.get(os.getpid())
            if pool is None:
                workers = max(1, (os.cpu_count() or 1) - 1)
                pool = _pools[os.getpid()] = ThreadPoolExecutor(workers, thread_name_prefix="fedq-codec")
        for _ in range(copies):
            futures.append(pool.submit(function))
    except RuntimeError:
        pass  # this thread does the work of the missing threads
    return futures


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # the parent's lock may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked(value: int | str, name: str) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST_LIMIT:
        raise ValueError(f"{name}={value!r}: must be an integer 1..{LARGEST_LIMIT}; leave it out to use all cores")
    return value
