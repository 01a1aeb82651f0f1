"""The validator as a real process that is killed while it judges."""

import asyncio
import functools
import signal
import time

import numpy as np

from services.validator.storage import Storage
from shared.adapters.tables.validations import ValidationScope
from shared.adapters.versions.store import CheckpointStore
from shared.market.session import Split
from shared.messages.streams import ALERTS, VALIDATIONS
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.services.trainer.processes import System
from tests.services.validator.cases import save_version
from tests.services.validator.test_service import publish

pytestmark = BREAKS_CONNECTIONS

#: Time limit for judging one version, and for judging the newest version after a start. A judgement takes
#: about a second, and many times as long on a busy machine.
PERIOD_SECONDS = 120.0

SHORT = {
    "MM_VALIDATION__TIME_LIMIT_SECONDS": str(PERIOD_SECONDS),
    "MM_VALIDATION__MAX_SESSIONS": "24",
    "MM_VALIDATION__PAGE": "false",
    "MM_SEARCH__SIMULATIONS": "8",
    "MM_MONTE_CARLO__RUNS": "40",
    "MM_SIZING__CURVES": "40",
    "MM_SIZING__REPEATS": "2",
    "MM_SIZING__HORIZON_DAYS": "60",
    "MM_SIZING__MIN_PERIODS": "3",
    "MM_HEARTBEAT_SECONDS": "0.05",
}

#: Versions announced before each kill, and while the validator is stopped.
EACH = 2


@rounds(1, 25)
async def test_a_killed_validator_judges_each_version_once_and_the_newest_first(
    forked_system: System, count: int
) -> None:
    system = forked_system
    rng = np.random.default_rng(11)
    store = CheckpointStore(system.home / "checkpoints")
    storage = Storage(store, system.home / "validations")
    scope = ValidationScope(system.dataset.fingerprint, Split.VALIDATION)
    newest = 0
    firsts: dict[int, int] = {}  # newest version at each start, by the number of versions judged before

    async def announce() -> None:
        nonlocal newest
        for _ in range(EACH):
            newest += 1
            save_version(store, newest, dataset=system.dataset.fingerprint)
            await publish(system.bus, newest)

    async def judged(number: int) -> bool:
        return await system.detail("validator", "done") >= number

    async def start() -> None:
        """Start it and wait until it judges, or until it has judged everything."""
        before = len(storage.records.done(scope))
        firsts[before] = newest
        system.start("validator", **SHORT)

        async def judges() -> bool:
            return await judged(before + 1) or await system.detail("validator", "validating") == newest

        await system.until("the newest is judged", judges)

    in_the_middle = 0
    for _ in steps(count):
        await announce()
        await start()
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        system.stop("validator", signal.SIGKILL)
        in_the_middle += newest not in storage.records.done(scope)
        await announce()  # while it is stopped
    begun = time.monotonic()
    await start()
    first_of_all = functools.partial(judged, max(firsts) + 1)
    await system.until("the newest is validated", first_of_all)  # the newest version is judged first
    newest_validated_seconds = time.monotonic() - begun
    for number in steps(1, newest + 1):
        await system.until(f"{number} of {newest} are judged", functools.partial(judged, number))
    assert await asyncio.to_thread(system.stop, "validator") == 0

    announced = [entry.message.version for entry in await system.bus.recent(VALIDATIONS, count=10_000)][::-1]
    done = storage.records.done(scope)
    reports = sorted(storage.reports.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    order = [int(path.stem) for path in reports]  # their timestamps are in whole seconds
    print_figures(
        "validator killed",
        kills=count,
        in_the_middle=in_the_middle,
        versions=newest,
        results=len(reports),
        missing=newest - len(done),
        announced_again=len(announced) - len(set(announced)),
        newest_validated_seconds=round(newest_validated_seconds, 2),
    )
    assert in_the_middle >= count // 5
    assert done == set(announced) == set(range(1, newest + 1))
    assert sorted(order) == sorted(done)
    assert {number: order[number] for number in firsts} == firsts
    assert newest_validated_seconds <= PERIOD_SECONDS
    # A version is announced again after a kill between its announcement and its record.
    assert len(announced) - len(set(announced)) <= count - in_the_middle
    assert await system.bus.length(ALERTS) == 0
