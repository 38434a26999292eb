"""A signal acts between two steps and after a checkpoint; a second one acts at once."""

import os
import signal

import pytest

from stages import signals as signals_module
from stages.signals import DeferredSignals


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_waits_until_it_may_act() -> None:
    events: list[str] = []

    def train() -> None:
        with DeferredSignals() as signals:
            signals.deliver(lambda: events.append("nothing to save"))
            interrupt()
            events.append("the step ends")
            signals.deliver(lambda: events.append("saved"))
            events.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert events == ["the step ends", "saved"]


def test_a_repeated_signal_is_the_same_one() -> None:
    events: list[str] = []

    def train() -> None:
        with DeferredSignals() as signals:
            interrupt()
            interrupt()
            signals.deliver(lambda: events.append("saved"))

    with pytest.raises(KeyboardInterrupt):
        train()
    assert events == ["saved"]


def test_a_second_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "REPEATED", -1.0)
    events: list[str] = []

    def train() -> None:
        with DeferredSignals():
            interrupt()
            events.append("the step goes on")
            interrupt()
            events.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert events == ["the step goes on"]


def test_a_signal_during_a_long_picture_saves_and_ends_it() -> None:
    events: list[str] = []

    def train() -> None:
        with DeferredSignals() as signals, signals.immediate(lambda: events.append("saved")):
            interrupt()
            events.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert events == ["saved"]


def test_signals_are_deferred_again_after_a_picture() -> None:
    events: list[str] = []

    def train() -> None:
        with DeferredSignals() as signals:
            with signals.immediate(lambda: events.append("nothing")):
                events.append("drawn")
            interrupt()
            events.append("the step ends")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert events == ["drawn", "the step ends"]


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with DeferredSignals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
