"""Starting worker processes is not cut in the middle by a signal."""

import signal
import threading

import pytest

from tfm_jax.text.workers import deaf_to_interrupts


class Signalled(Exception):
  pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_receives_waits_for_the_end_of_the_block(number):
  """The kernel gives it to a thread that does not block it; Python's handler then runs in the main thread."""
  begin = threading.Event()

  def receive():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    begin.wait()
    signal.raise_signal(number)

  def stop(number, frame):
    raise Signalled(number)

  thread = threading.Thread(target=receive, daemon=True)
  thread.start()
  started = False
  mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
  previous = signal.signal(number, stop)
  try:
    with pytest.raises(Signalled) as raised, deaf_to_interrupts():
      begin.set()
      thread.join(60)
      started = True
    assert started and raised.value.args == (number,)
    assert signal.getsignal(number) is stop
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
  finally:
    signal.signal(number, previous)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_the_default_action_of_sigterm_is_not_replaced():
  """JAX's preemption service handles SIGTERM in C; a handler of Python's would take its place."""
  before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    with deaf_to_interrupts():
      assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, before)
