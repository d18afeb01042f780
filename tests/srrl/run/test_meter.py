"""Progress inside a piece of work: lines in a log, one line on a terminal, nothing elsewhere."""

import pytest
import torch
from torch import nn

from srrl.run import meter
from srrl.run.meter import Meter


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(meter, "SILENCE_S", 0.0)
    return nn.Linear(3, 3)


def calls(network, count, rows=5):
    with torch.no_grad():
        for _ in range(count):
            network(torch.zeros(rows, 3))


def test_a_log_gets_lines_with_the_share_that_is_done(network, capsys):
    counted = Meter()
    with counted.work("stage 1/9", network, 40):
        calls(network, 2)
        counted.phase = "update"
        network(torch.zeros(2, 3))  # with gradient
        calls(network, 9)  # more than was expected
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].strip() for line in lines[:3]] == [
        "stage 1/9: 12%",
        "stage 1/9: 25%",
        "stage 1/9 update: 40%",
    ]
    assert "100%, 0 s left" in lines[-1]
    calls(network, 1)
    assert not capsys.readouterr().out


def test_a_log_is_not_filled(network, capsys, monkeypatch):
    monkeypatch.setattr(meter, "SILENCE_S", 1e9)
    with Meter().work("stage 1/9", network, 40):
        calls(network, 8)
    assert not capsys.readouterr().out


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(network, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with Meter().work("evaluation, train, K 1", network, 40):
        calls(network, 8)
    shown = capsys.readouterr().out
    assert "evaluation, train, K 1" in shown and "\r" in shown and "\n" not in shown.strip()


def test_other_processes_say_nothing(network, capsys):
    with Meter(active=False).work("stage 1/9", network, 40):
        calls(network, 8)
    assert not capsys.readouterr().out
