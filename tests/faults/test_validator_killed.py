"""The validator as a real process, killed while it judges: each version one result, the newest first."""

import asyncio
import functools
import signal
import time

import numpy as np

from services.validator.service import Desk
from shared.adapters.tables.validations import ValidationScope
from shared.adapters.versions.store import CheckpointStore
from shared.market.session import Split
from shared.messages.streams import ALERTS, VALIDATIONS
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import rounds, steps, tell
from tests.services.trainer.processes import System
from tests.services.validator.cases import save_version
from tests.services.validator.test_service import publish

pytestmark = BREAKS_CONNECTIONS

#: What the validator may take for one version: so soon after its start, too, the newest is validated. A
#: judgement takes about a second, and many times as long on a machine that has a core for it now and then.
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

#: Versions announced before each kill, and while the validator is away.
EACH = 2


@rounds(1, 25)
async def test_a_validator_killed_at_any_moment_judges_each_version_once_and_the_newest_first(
    forked_system: System, count: int
) -> None:
    system = forked_system
    rng = np.random.default_rng(11)
    store = CheckpointStore(system.home / "checkpoints")
    desk = Desk(store, system.home / "validations")
    ground = ValidationScope(system.dataset.fingerprint, Split.VALIDATION)
    newest = 0
    firsts: dict[int, int] = {}  # by the number of versions judged before a start, the newest version then

    async def announce() -> None:
        nonlocal newest
        for _ in range(EACH):
            newest += 1
            save_version(store, newest, dataset=system.dataset.fingerprint)
            await publish(system.bus, newest)

    async def judged(number: int) -> bool:
        return await system.detail("validator", "done") >= number

    async def start() -> None:
        """Start it and wait until it judges, or has judged before a busy machine let us look."""
        before = len(desk.records.done(ground))
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
        in_the_middle += newest not in desk.records.done(ground)
        await announce()  # while it is away
    begun = time.monotonic()
    await start()
    first_of_all = functools.partial(judged, max(firsts) + 1)
    await system.until("the newest is validated", first_of_all)  # the first that is judged now is the newest
    newest_validated_seconds = time.monotonic() - begun
    for number in steps(1, newest + 1):
        await system.until(f"{number} of {newest} are judged", functools.partial(judged, number))
    assert await asyncio.to_thread(system.stop, "validator") == 0

    told = [entry.message.version for entry in await system.bus.recent(VALIDATIONS, count=10_000)][::-1]
    done = desk.records.done(ground)
    reports = sorted(desk.reports.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    order = [int(path.stem) for path in reports]  # what they say of their time is whole seconds
    tell(
        "validator killed",
        kills=count,
        in_the_middle=in_the_middle,
        versions=newest,
        results=len(reports),
        missing=newest - len(done),
        told_again=len(told) - len(set(told)),
        newest_validated_seconds=round(newest_validated_seconds, 2),
    )
    assert in_the_middle >= count // 5
    assert done == set(told) == set(range(1, newest + 1))
    assert sorted(order) == sorted(done)
    assert {number: order[number] for number in firsts} == firsts
    assert newest_validated_seconds <= PERIOD_SECONDS
    assert len(told) - len(set(told)) <= count - in_the_middle  # killed after it told, before it noted so
    assert await system.bus.length(ALERTS) == 0
