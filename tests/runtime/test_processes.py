"""Programs that are started for a while: at the end none of them, nor of their children, is left."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from fedq.runtime import processes as module
from fedq.runtime.processes import Processes, tail

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 1.0)


@pytest.fixture
def start(tmp_path):
    """Processes of a mark of their own, and a way to start a line of Python that says when it is under way."""

    def start(processes, code, *, name="program", extra=None):
        log = tmp_path / f"{name}.log"
        script = f"import os, signal, subprocess, sys, time\n{code}\n"
        process = processes.start([sys.executable, "-u", "-c", script], log, extra or {})
        end = time.monotonic() + 20
        while "ready" not in tail(log):
            assert time.monotonic() < end, tail(log)
            time.sleep(0.02)
        return process, log

    return start


@pytest.fixture
def processes(tmp_path):
    return Processes(str(tmp_path), dict(os.environ))


def runs(pid):
    """Whether such a process is there, a zombie not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def pids(log):
    return [int(word) for line in tail(log).splitlines() if line.startswith("child") for word in line.split()[1:]]


SLEEP = "print('ready'); time.sleep(60)"
DEAF = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def test_a_program_gets_what_it_is_given_and_its_log_holds_what_it_says(processes, start):
    with processes:
        code = "print(os.environ['COLOUR']); print('worse', file=sys.stderr); print(sys.stdin.read() == ''); "
        process, log = start(processes, code + "print('ready')", extra={"COLOUR": "blue"})
        assert process.wait(10) == 0
    assert sorted(tail(log).splitlines()) == ["True", "blue", "ready", "worse"]


def test_a_program_that_ends_by_itself_on_a_signal_may_do_so(processes, start):
    tidy = "signal.signal(signal.SIGTERM, lambda *a: (print('tidy'), sys.exit(0))); " + SLEEP
    with processes:
        process, log = start(processes, tidy)
    assert process.returncode == 0
    assert tail(log).splitlines()[-1] == "tidy"


def test_a_program_that_ignores_the_signal_is_killed_after_a_moment(processes, start):
    with processes:
        process, _ = start(processes, DEAF)
        begun = time.monotonic()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= time.monotonic() - begun < 6


CHILD = (
    "child = subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session={apart}); print('child', child.pid)"
)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True], ids=["in its session", "in a session of its own"])
@pytest.mark.parametrize("deaf", [False, True], ids=["obedient", "deaf"])
def test_children_are_gone_too(processes, start, apart, deaf):
    code = "import signal, time; " + (DEAF if deaf else SLEEP)
    with processes:
        _, log = start(processes, CHILD.format(code=code, apart=apart) + f"; time.sleep(0.5); {SLEEP}")
        (child,) = pids(log)
        assert runs(child)
    assert not runs(child)


def test_a_grandchild_whose_parents_have_ended_is_gone_too(processes, start):
    orphan = CHILD.format(code="import time; time.sleep(60)", apart=True)
    middle = f"import subprocess, sys; {orphan}"
    with processes:
        process, log = start(
            processes, f"subprocess.run([sys.executable, '-c', {middle!r}], start_new_session=True); print('ready')"
        )
        assert process.wait(10) == 0
        (grandchild,) = pids(log)
        assert runs(grandchild)
    assert not runs(grandchild)


def test_programs_of_others_are_left_alone(processes, start, tmp_path):
    stranger = Processes(f"{tmp_path}-other", dict(os.environ))
    with stranger:
        process, _ = start(stranger, SLEEP, name="stranger")
        with processes:
            start(processes, SLEEP)
        assert process.poll() is None


def test_ctrl_c_in_between_ends_them_all_the_same(processes, start):
    started = []

    def rehearse():
        with processes:
            started.append(start(processes, SLEEP)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        rehearse()
    assert not runs(started[0].pid)


def test_a_ctrl_c_at_the_terminal_does_not_reach_them_before_us(processes, start):
    with processes:
        process, _ = start(processes, SLEEP)
        assert os.getpgid(process.pid) != os.getpgid(0)
        assert os.getsid(process.pid) == process.pid


def test_while_all_go_on_there_is_nothing_to_report(processes, start):
    with processes:
        start(processes, SLEEP)
        processes.check()


def test_a_program_that_ends_early_is_reported_with_its_command_status_and_last_words(processes, start):
    with processes:
        start(processes, SLEEP, name="goes-on")
        code = "print('ready'); print('port 9092 is taken', file=sys.stderr); sys.exit(3)"
        process, _ = start(processes, code, name="ends")
        process.wait(10)
        with pytest.raises(RuntimeError, match=r"(?s)-u -c .*ended with status 3:.*port 9092 is taken"):
            processes.check()


def test_a_log_is_told_by_its_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(100)) + b"caf\xe9\n")
    assert tail(log, lines=2).splitlines() == ["line 99", "caf\ufffd"]


def test_a_log_that_is_not_there_has_no_last_line(tmp_path):
    assert tail(tmp_path / "nosuch.log") == ""
