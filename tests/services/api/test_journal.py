"""GET /validations, /trades, /decisions, /alerts, /dead; POST /trader and /training."""

from datetime import timedelta

import pytest

from shared.adapters.streams.bus import Bus
from shared.messages.codec import encode, encode_trajectory
from shared.messages.schemas import AlertRaised, DeadLettered, TradeClosed, now
from shared.messages.streams import ALERTS, CONTROL, DEAD, DECISIONS, TRADES, TRAINER_GROUP, TRAJECTORIES
from tests.services.api.conftest import KEY, System
from tests.services.api.test_status import decision
from tests.shared.messages.trajectories import random_trajectory


def trade(number: int) -> TradeClosed:
    return TradeClosed(
        trade_id=str(number),
        instrument="GBP_JPY",
        side=1,
        units=1,
        entry_time=now() - timedelta(minutes=5),
        exit_time=now(),
        entry_price=187.0,
        exit_price=187.1,
        pips=6.0,
    )


async def test_trades_come_newest_first_in_pages(system: System, bus: Bus) -> None:
    for number in range(5):
        await bus.append(TRADES, trade(number))
    seen: list[str] = []
    before = None
    while True:
        parameters = {"limit": 2} if before is None else {"limit": 2, "before": before}
        page = (await system.client.get("/trades", params=parameters)).json()
        seen += [item["message"]["trade_id"] for item in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert seen == ["4", "3", "2", "1", "0"]


async def test_decisions_alerts_and_dead_letters_are_returned_as_messages(system: System, bus: Bus) -> None:
    await bus.append(DECISIONS, decision(action="CLOSE", side=0))
    await bus.append(ALERTS, AlertRaised(source="trader", name="stale_price", detail="no tick for 12 s"))
    await bus.append(DEAD, DeadLettered(stream="mm:trajectories", entry_id="1-0", reason="bad hash"))
    assert (await system.client.get("/decisions")).json()["items"][0]["message"]["action"] == "CLOSE"
    raised = [item["message"]["name"] for item in (await system.client.get("/alerts")).json()["items"]]
    assert "stale_price" in raised  # dead_letters may have been raised, too
    assert (await system.client.get("/dead")).json()["items"][0]["message"]["reason"] == "bad hash"


async def test_a_dead_letter_is_returned_without_the_original_entry(system: System, bus: Bus) -> None:
    header, arrays = encode_trajectory(random_trajectory(1, 360))
    await bus.append(TRAJECTORIES, header, arrays)
    batch = await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "one"))
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "of another data set")
    answer = await system.client.get("/dead")
    (item,) = answer.json()["items"]
    size = sum(len(name) + len(value) for name, value in encode(header, arrays).items())
    assert (item["message"]["kept"], item["message"]["size_bytes"]) == (True, size)
    assert size > len(arrays) > 20_000
    assert len(answer.content) < 8_000  # a zero byte of the excerpt is six in JSON
    assert "original" not in answer.text


async def test_validations_are_listed_by_version(system: System) -> None:
    for version in (1, 3, 2):
        await system.report(version, "paper")
    await system.until(lambda: len(system.gateway.history.validations) == 3)
    first = (await system.client.get("/validations", params={"limit": 2})).json()
    assert [item["version"] for item in first["items"]] == [3, 2]
    rest = (await system.client.get("/validations", params={"before": first["next"]})).json()
    assert [item["version"] for item in rest["items"]] == [1]


async def test_a_validation_has_the_report_and_flags_for_page_and_picture(system: System) -> None:
    await system.report(4)
    detail = (await system.client.get("/validations/4")).json()
    assert detail["report"]["version"] == 4
    assert (detail["has_page"], detail["has_picture"]) == (False, False)
    assert (await system.client.get("/validations/4/picture")).status_code == 404
    (system.validation_root / "4.png").write_bytes(b"\x89PNG")
    (system.validation_root / "4.html").write_text("<p>four")
    detail = (await system.client.get("/validations/4")).json()
    assert (detail["has_page"], detail["has_picture"]) == (True, True)
    picture = await system.client.get("/validations/4/picture")
    assert (picture.headers["content-type"], picture.content) == ("image/png", b"\x89PNG")
    page = await system.client.get("/validations/4/page")
    assert page.text == "<p>four"
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '{"version": 1' + "0" * 5000 + "}"])
async def test_a_damaged_report_is_a_conflict(system: System, content: str) -> None:
    system.validation_root.mkdir(parents=True)
    (system.validation_root / "5.json").write_text(content)
    answer = await system.client.get("/validations/5")
    assert answer.status_code == 409
    assert "validate the version again" in answer.json()["detail"]


async def test_a_report_with_nan_or_infinity_is_returned_with_null(system: System) -> None:
    system.validation_root.mkdir(parents=True)
    (system.validation_root / "5.json").write_text('{"sqn": NaN, "car25": Infinity, "far": 1e400}')
    report = (await system.client.get("/validations/5")).json()["report"]
    assert report == {"sqn": None, "car25": None, "far": None}


@pytest.mark.parametrize(
    ("path", "target", "state"),
    [
        ("/trader/kill", "trader", "killed"),
        ("/trader/resume", "trader", "running"),
        ("/training/pause", "training", "paused"),
        ("/training/resume", "training", "running"),
    ],
)
async def test_the_status_shows_an_order_in_the_section_of_its_target(
    system: System, bus: Bus, path: str, target: str, state: str
) -> None:
    answer = await system.client.post(path, headers=KEY, json={"reason": "drill"})
    assert answer.json()["control"]["state"] == state
    standing = await bus.newest(CONTROL, name=target)
    assert standing is not None
    assert (standing.target, standing.state, standing.reason) == (target, state, "drill")
    await system.until(lambda: target in system.gateway.history.controls)
    shown = (await system.client.get("/status")).json()[target]
    assert (shown["order"]["state"], shown["order"]["reason"]) == (state, "drill")
    assert (shown["state"], shown["confirmed"]) == ("unknown", None)  # no service confirms it
