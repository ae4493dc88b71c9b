"""Progress: bars for people, lines for logs, silence beside JSON."""

from __future__ import annotations

import sys

from cli.progress import progress


def run_a_stage(quiet=False):
    with progress(quiet) as report:
        for done in range(3):
            report("training", done, 2, f"loss {done}")


def test_a_log_gets_one_line_a_stage_on_stderr(capsys):
    run_a_stage()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "training: 2/2" in printed.err
    assert "loss 2" in printed.err


def test_nothing_stands_beside_json(capsys):
    run_a_stage(quiet=True)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_a_stage()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2" in printed.err
