"""Being told to stop must never be lost, whenever the signal comes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from suture_worker.stop import Stop


def test_it_waits_and_is_woken():
    stop = Stop()
    began = time.monotonic()
    assert not stop.wait(0.05)
    assert time.monotonic() - began >= 0.05
    threading.Timer(0.1, stop.set).start()
    assert stop.wait(1000)  # longer than a test may take
    assert stop.wait(1000)
    assert stop.is_set()


def test_all_threads_that_wait_are_woken():
    stop, woken = Stop(), []
    threads = [threading.Thread(target=lambda: woken.append(stop.wait(1000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(60)
    assert woken == [True] * 4


def test_a_signal_in_the_middle_of_waiting_is_not_lost():
    """Thousands of signals at random moments of `wait`; with `threading.Event` the process hangs in its own handler."""
    script = """
import random, signal
from suture_worker.stop import told_to_stop
for _ in range(4000):
    with told_to_stop() as stop:
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
        while not stop.wait(0.00001):
            pass
print("heard all")
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert answer.stdout == "heard all\n", answer.stderr
