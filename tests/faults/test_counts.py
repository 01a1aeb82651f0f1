"""Time limits and progress reports of soak tests."""

import asyncio
import signal
import time

import pytest

from tests.faults import counts
from tests.faults.counts import failing_hangs, steps


def hangs_in_a_task() -> None:
    asyncio.run(asyncio.Event().wait())


@pytest.mark.parametrize("hang", [hangs_in_a_task, lambda: time.sleep(600)])
def test_a_hanging_soak_test_fails(hang: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "STEP_SECONDS", 0.2)
    with pytest.raises(pytest.fail.Exception, match=r"no progress for 0\.2 s"), failing_hangs():
        hang()  # type: ignore[operator]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_each_step_of_a_soak_test_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_hangs():
        monkeypatch.setattr(counts, "STEP_SECONDS", 10_000.0)
        assert signal.getitimer(signal.ITIMER_REAL)[0] < 5_000.0
        for _ in steps(2):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 5_000.0


def test_without_a_soak_test_there_is_no_time_limit() -> None:
    assert list(steps(3)) == [0, 1, 2]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_long_soak_test_reports_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts, "REPORT_SECONDS", 0.0)
    assert list(steps(1_000))[-1] == 999
    assert capsys.readouterr().out.splitlines()[-1].startswith("1,000 of 1,000 after ")
