"""How far long work is: on a terminal, elsewhere, and where nobody asked."""

import io

import numpy as np
import pytest

from tfprivacy_lab.pretraining import progress, tasks


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


class Clock:
    """A clock that is set, in seconds."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    set_by_hand = Clock()
    monkeypatch.setattr(progress.time, "monotonic", set_by_hand)
    return set_by_hand


def steps(clock, seconds, count, **options):
    """Do ``count`` steps of so many seconds each."""
    with progress.Progress("some work", count, **options) as shown:
        for _ in range(count):
            clock.now += seconds
            shown.advance()


def test_elsewhere_a_plain_line_every_few_seconds_with_the_time_left(clock):
    stream = io.StringIO()
    steps(clock, 2.0, 10, stream=stream)
    said = [line.split() for line in stream.getvalue().split("\n")]
    assert said == [
        ["some", "work", "30%", "14", "s", "left"],
        ["some", "work", "60%", "8", "s", "left"],
        ["some", "work", "90%", "2", "s", "left"],
        [],
    ]
    assert all(line.startswith("some work") for line in stream.getvalue().splitlines())


def test_the_first_step_which_traces_does_not_count_in_the_time_left(clock):
    stream = io.StringIO()
    with progress.Progress("some work", 4, stream=stream) as shown:
        for seconds in (60.0, 6.0, 6.0, 6.0):
            clock.now += seconds
            shown.advance()
    assert [line.split()[2:4] for line in stream.getvalue().splitlines()] == [["50%", "12"], ["75%", "6"]]


def test_short_work_says_nothing_elsewhere(clock):
    stream = io.StringIO()
    steps(clock, 0.4, 10, stream=stream)
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_line_that_goes_at_the_end():
    stream = Terminal()
    with progress.Progress("some work", 4, stream=stream) as shown:
        shown.advance()
        assert "some work" in stream.getvalue()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_where_nobody_asked(clock, stream):
    shown = stream()
    steps(clock, 9.0, 3, stream=shown, shown=False)
    assert shown.getvalue() == ""


def test_pretraining_shows_its_steps_and_learns_the_same(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_APART", 0.0)
    images, labels = np.random.default_rng(0).integers(0, 255, (64, 28, 28), dtype=np.uint8), np.arange(64) % 10
    learnt = [
        tasks.pretrain("supervised", images, labels, seed=0, epochs=2, batch_size=16, progress=shown)
        for shown in (True, False)
    ]
    said = [line.split()[:2] for line in capsys.readouterr().err.splitlines()]
    assert said == [["supervised", f"{share}%"] for share in (25, 38, 50, 62, 75, 88)]
    assert learnt[0].history["loss"] == pytest.approx(learnt[1].history["loss"], rel=1e-4)
