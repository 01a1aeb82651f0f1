"""The validator as a process of its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from services.validator.__main__ import main
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import write_dataset
from shared.messages.streams import PROMOTIONS, VALIDATIONS
from shared.runtime.redis_server import RedisServer
from tests.conftest import ROOT
from tests.services.validator.cases import small_dataset, store_with
from tests.services.validator.test_service import publish, until_sent


async def test_the_process_judges_promotes_and_stops_on_sigterm(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    data = small_dataset()
    write_dataset(tmp_path / "d.duckdb", data.bars, data.source, data.session_config, data.split_config)
    store_with(tmp_path, 1)
    await publish(bus, 1)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MM_HOME": str(tmp_path),
        "MM_DATASET": str(tmp_path / "d.duckdb"),
        "MM_REDIS_URL": redis_server.url,
        "MM_ENVIRONMENT__SESSION_BARS": "36",
        "MM_VALIDATION__MAX_SESSIONS": "5",
        "MM_SEARCH__SIMULATIONS": "2",
        "MM_SIZING__REPEATS": "1",
        "MM_SIZING__CURVES": "40",
        "MM_MONTE_CARLO__RUNS": "40",
        "MM_GATE__PAPER_MIN_TRADES": "0",
        "MM_GATE__PAPER_MIN_DAYS": "0",
        "MM_GATE__PAPER_MAX_P_VALUE": "1",
        "MM_GATE__PAPER_MAX_RULE_P_VALUE": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.validator",
        cwd=tmp_path,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        (validation,) = await until_sent(bus, VALIDATIONS, 1, seconds=90)
        (promotion,) = await until_sent(bus, PROMOTIONS, 1)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0, log.decode()
    assert (validation.version, validation.num_sessions) == (1, 5)
    assert promotion.by == "validator"
    assert (tmp_path / "validations" / "1.html").is_file()


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name in ("MM_VALIDATION__TIME_LIMIT_SECONDS", "MM_GATE__LIVE_MIN_SQN", "MM_MONTE_CARLO__RUNS"):
        assert name in text
