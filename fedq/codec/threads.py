"""Splits a range of work over the cores. Knows ranges and functions; not arrays, codecs or numba.

The work must release the GIL to gain from it, and its parts must not depend on each other.
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
# At most so many threads; None: what the environment says, else all usable cores.
limit: int | None = None

_PARTS_PER_THREAD = 4  # so that a core that others use too delays the rest by a part, not by its whole share
_lock = threading.Lock()
# Of each process that used one. A child that was forked must neither use nor collect its parent's: its threads are
# gone, and its locks may be held by one of them.
_pools: dict[int, ThreadPoolExecutor] = {}


def threads() -> int:
    """How many threads `split` works on at most, this one included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if limit is not None:
        return min(cores, _checked(limit, "fedq.codec.threads.limit"))
    told = os.environ.get(ENVIRONMENT, "")
    return min(cores, _checked(int(told) if told.isdecimal() else told, ENVIRONMENT)) if told else cores


def split(work: Callable[[int, int], T], count: int, *, grain: int) -> list[T]:
    """work(start, stop) of contiguous parts of 0..count, in order; all in this thread if count < 2 * grain.

    No part is smaller than `grain`, except where count is. Should parts fail, one of their errors is raised, once
    no part is being worked on any more.

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
    tickets = itertools.count()  # next() of it is atomic
    # Emptied at the end: a pool's thread drops its last job when it pleases, and with it what the work refers to.
    held = [work]

    def take_parts() -> None:
        try:
            while (part := next(tickets)) < num_parts:
                done[part] = held[0](edges[part], edges[part + 1])
        except BaseException:
            for _ in range(num_parts):  # nobody starts another part
                next(tickets)
            raise

    futures = _started(take_parts, helpers)
    try:
        take_parts()
    finally:
        # One that has not started yet has nothing left to do; waiting for it could be waiting for ourselves.
        running = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in running]
        held.clear()
    for error in errors:
        if error is not None:
            raise error
    return [done[part] for part in range(num_parts)]


def _started(function: Callable[[], None], copies: int) -> list[Future[None]]:
    """As many copies as the system allows; maybe none, at the interpreter's exit or at the limit of threads."""
    futures: list[Future[None]] = []
    if sys.is_finalizing():  # no pool takes work any more
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
        pass  # this thread does the work of those that are missing
    return futures


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # the parent's may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked(told: int | str, name: str) -> int:
    if type(told) is not int or not 1 <= told <= LARGEST_LIMIT:
        raise ValueError(f"{name}={told!r}: must be an integer 1..{LARGEST_LIMIT}; leave it out to use all cores")
    return told
