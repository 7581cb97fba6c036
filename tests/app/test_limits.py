"""What one message may take of a client's machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from fedq.app.limits import DeadlineExceeded, LimitError, count_request, deadline, memory_limit
from fedq.privacy import Declined

pytestmark = [pytest.mark.integration, pytest.mark.hostile]


def test_what_ends_in_time_is_left_alone_and_nothing_of_the_timer_stays():
    before = signal.getsignal(signal.SIGALRM)
    with deadline(5.0):
        pass
    with deadline(None):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_pipe_that_nobody_writes_to_holds_a_client_no_longer_than_its_deadline(tmp_path):
    """Opening it once held the client for ever."""
    os.mkfifo(tmp_path / "calibration.npz")
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"longer than the 0\.2 s that max_seconds allows"), deadline(0.2):
        open(tmp_path / "calibration.npz", "rb").close()
    assert time.monotonic() - begun < 5


def test_code_that_catches_every_exception_is_stopped_all_the_same():
    def stubborn():
        while True:
            with suppress(Exception):
                time.sleep(10)

    with pytest.raises(DeadlineExceeded, match="max_seconds"), deadline(0.1):
        stubborn()


def test_code_that_catches_even_the_deadline_ends_with_its_process():
    code = (
        "from fedq.app import limits\n"
        "limits.GRACE_SECONDS = 0.2\n"
        "with limits.deadline(0.2):\n"
        "    while True:\n"
        "        try:\n"
        "            __import__('time').sleep(10)\n"
        "        except BaseException: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_a_deadline_that_cannot_be_kept_is_an_error():
    found: list[BaseException] = []

    def work():
        try:
            with deadline(1.0):
                pass
        except LimitError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "needs the main thread" in str(found[0])


@pytest.mark.parametrize("take", [lambda: np.ones(10**8), lambda: bytearray(10**9)], ids=["numpy", "bytes"])
def test_memory_beyond_the_limit_is_an_error_and_below_it_is_there(take):
    with memory_limit(200):
        assert len(bytearray(10**8)) == 10**8
        with pytest.raises(MemoryError):
            take()
    assert len(take()) >= 10**8  # and afterwards it is free again


def test_torch_is_held_to_the_limit_too():
    with memory_limit(200), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.ones(10**9, dtype=torch.uint8)


def test_a_run_has_no_more_rounds_of_a_client_than_its_owner_allows(tmp_path):
    """A server once asked for as many as it liked, whatever its config said; a message that comes again counts."""
    for round in (1, 2, 2):
        count_request(tmp_path / "run", round, most=3)
    with pytest.raises(Declined, match="policy: round 3: the run already had 3 rounds, of at most 3") as caught:
        count_request(tmp_path / "run", 3, most=3)
    assert caught.value.reason == "policy"
    count_request(tmp_path / "another run", 1, most=3)
    count_request(tmp_path / "run", 3, most=None)
