"""Splitting of work over threads: every part once and in order, errors, forks and exits."""

import os
import subprocess
import sys
import threading
import time

import pytest

from fedq.codec import threads


@pytest.fixture
def four_threads(monkeypatch):
    """As if the machine had four cores."""
    monkeypatch.setattr(threads, "threads", lambda: 4)


@pytest.mark.parametrize("count", [0, 1, 7, 99, 100, 101, 1000, 12_345])
@pytest.mark.parametrize("grain", [1, 7, 100])
def test_parts_cover_the_range_once_and_in_order(count, grain, four_threads):
    parts = threads.split(lambda start, stop: (start, stop), count, grain=grain)
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == count
    assert len(parts) == 1 or min(stop - start for start, stop in parts) >= grain


def test_little_work_is_done_in_this_thread(four_threads):
    workers = threads.split(lambda start, stop: threading.current_thread(), 199, grain=100)
    assert workers == [threading.current_thread()]


def test_much_work_is_done_in_several_threads(four_threads):
    both = threading.Barrier(2, timeout=60)
    met = []

    def meet(start, stop):
        if start < 2:
            both.wait()  # passes only if two threads wait at once
            met.append(threading.get_ident())

    threads.split(meet, 4, grain=1)
    assert len(set(met)) == 2


def test_work_may_split_its_own_work(four_threads):
    def inner(start, stop):
        return sum(threads.split(lambda a, b: b - a, 1000, grain=1))

    assert set(threads.split(inner, 64, grain=1)) == {1000}


def test_an_error_is_raised_once_nothing_is_worked_on_any_more(four_threads):
    working = []

    def work(start, stop):
        working.append(start)
        time.sleep(0.001)
        working.remove(start)
        if start == 500:
            raise ArithmeticError("part of 500")

    with pytest.raises(ArithmeticError, match="part of 500"):
        threads.split(work, 1000, grain=1)
    assert working == []


def test_the_setting_limits_the_threads(monkeypatch):
    monkeypatch.setattr(threads, "limit", 1)
    assert threads.threads() == 1
    monkeypatch.setattr(threads, "limit", 256)
    monkeypatch.setenv("FEDQ_CODEC_THREADS", "1")  # the setting comes first
    assert threads.threads() == len(os.sched_getaffinity(0))


def test_the_environment_limits_the_threads(monkeypatch):
    monkeypatch.setenv("FEDQ_CODEC_THREADS", "1")
    assert threads.threads() == 1


@pytest.mark.parametrize("told", ["0", "-1", "257", "two", "1.5"])
def test_a_wrong_environment_is_an_error(told, monkeypatch):
    monkeypatch.setenv("FEDQ_CODEC_THREADS", told)
    with pytest.raises(ValueError, match=r"FEDQ_CODEC_THREADS=.*must be an integer 1\.\.256"):
        threads.threads()


def test_a_forked_child_has_threads_of_its_own_and_everybody_exits():
    program = """
import os, threading
from fedq.codec import threads
threads.threads = lambda: 4
both = threading.Barrier(2, timeout=30)
def meet(start, stop):
    if start < 2:
        both.wait()
threads.split(meet, 4, grain=1)
child = os.fork()
threads.split(meet, 4, grain=1)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
