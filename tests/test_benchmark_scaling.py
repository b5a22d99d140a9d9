"""Scaling on paper, by numbers worked out by hand."""

import pytest

from dynkhydra_tf.benchmark import scaling


def test_a_ring_takes_what_its_bytes_and_its_turns_take():
    # 8 workers: each sends 2 x 7/8 of 16 MB, at 0.8 ns a byte (10 Gbit/s) 22.4 ms, in 14 turns of 50 us.
    assert scaling.message_ms(8, 16, 0.8, 50) == pytest.approx(22.4 + 0.7)
    assert scaling.message_ms(2, 16, 0.8, 0) == pytest.approx(12.8)
    assert scaling.computing_share(30, 10) == 0.75


def test_the_table(run_command, capsys):
    flags = ("--ms_per_image=1.6", "--batch_sizes=240", "--megabytes=16", "--workers=8", "--gigabits=10,80")
    assert run_command(scaling.main, scaling.Options, *flags) is None
    # 24 ms of computing, 23.1 of messages: 51 %; at 80 Gbit/s 2.8 + 0.7 ms: 87 %. Messages take longer than
    # 24 ms with 11 workers, 23.27 + 1.0, and there with 210, 3.18 + 20.9.
    assert "| 240 | 24.0 | 51 | 87 | 11 workers | 210 workers |" in capsys.readouterr().out
    # Where the processors take longer for a byte than either line: 28 + 0.7 ms.
    assert run_command(scaling.main, scaling.Options, *flags, "--ns_per_byte=1") is None
    assert "| 240 | 24.0 | 46 | 46 |" in capsys.readouterr().out


def test_what_never_costs_half_has_no_end(run_command, capsys):
    flags = ("--batch_sizes=100000", "--latency_us=0", "--workers=2", "--gigabits=100")
    assert run_command(scaling.main, scaling.Options, *flags) is None
    assert capsys.readouterr().out.rstrip().endswith("| - |")
