"""Signals before a run's first step: see tests/training/test_resume.py for whole runs."""

import os
import signal
import sys
import threading

import pytest

from tfm_jax.runtime.interruption import Interrupted, ended_at_once


class Signalled:
  """Sends this process a signal when it is destroyed: Python ignores what its handler raises there."""

  def __init__(self, number):
    self.number = number

  def __del__(self):
    os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_destructor_is_not_lost(number, monkeypatch):
  reported = []
  monkeypatch.setattr(sys, "unraisablehook", reported.append)
  handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
  with pytest.raises(Interrupted) as stopped, ended_at_once(lambda: 7):
    Signalled(number)
    threading.Event().wait(60)
    pytest.fail("the signal was lost")
  assert stopped.value.number == number and "step 7" in str(stopped.value)
  assert not reported
  assert sys.unraisablehook == reported.append
  assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_other_errors_of_destructors_are_reported(monkeypatch):
  class Broken:
    def __del__(self):
      raise ValueError("broken")

  reported = []
  monkeypatch.setattr(sys, "unraisablehook", lambda lost: reported.append(str(lost.exc_value)))
  with ended_at_once(lambda: None):
    Broken()
  assert reported == ["broken"]
