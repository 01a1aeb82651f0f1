"""Every import format, and every fault that a file can have."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError, FormatError
from shared.market.bar import BarSeries, Instrument
from shared.market.calendar import open_minute, open_minutes
from shared.market.formats import ImportOptions, ImportResult, read_bars
from shared.market.rows import rising
from shared.market.spread import SpreadUnit
from shared.market.synthetic import Market, synthesize
from tests.shared.market.series import GBP_JPY, seconds

arrow: Any = pa

EUR_USD = Instrument.named("EUR_USD")
FRIDAY = seconds("2023-03-31T20:30")  # half an hour before the close


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    """90 bars around a weekend in summer time."""
    return synthesize(Market.REGIMES, 90, seed=7, start_s=FRIDAY)


def wall(time_s: int, zone: str = "UTC", shift_hours: int = 0) -> datetime:
    local = datetime.fromtimestamp(time_s, ZoneInfo(zone)).replace(tzinfo=UTC)
    return datetime.fromtimestamp(local.timestamp() + 3600 * shift_hours, UTC)


Row = Callable[[datetime, str, str, str, str, int], str]


def write(
    path: Path, bars: BarSeries, row: Row, *, head: str = "", zone: str = "UTC", shift_hours: int = 0
) -> Path:
    """Write bars as text on the wall clock of a zone."""
    lines = [head] if head else []
    for bar in range(len(bars)):
        o, h, low, c = (f"{getattr(bars, name)[bar]:.3f}" for name in ("open", "high", "low", "close"))
        time = wall(int(bars.time_s[bar]), zone, shift_hours)
        lines.append(row(time, o, h, low, c, int(bars.volume[bar])))
    path.write_text("\n".join(lines) + "\n")
    return path


def oanda(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S}.000000000Z,{o},{h},{low},{c},{v}"


def naive(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S},{o},{h},{low},{c},{v}"


def histdata(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{time:%Y%m%d %H%M%S};{o};{h};{low};{c};{v}"


def metatrader4(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{time:%Y.%m.%d},{time:%H:%M},{o},{h},{low},{c},{v}"


def metatrader5(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{time:%Y.%m.%d}\t{time:%H:%M:%S}\t{o}\t{h}\t{low}\t{c}\t{v}\t0\t37"


def dukascopy(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
    return f"{int(time.timestamp())}000,{o},{h},{low},{c},{v}"


HEAD = "time,open,high,low,close,volume"
HEAD_5 = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"


def assert_same_bars(found: BarSeries, bars: BarSeries) -> None:
    for name in ("time_s", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(found, name), getattr(bars, name), err_msg=name)


def test_oanda_csv(tmp_path: Path, bars: BarSeries) -> None:
    found = read_bars(write(tmp_path / "a.csv", bars, oanda, head=HEAD), GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert (found.format, found.timezone, found.num_dropped) == ("OANDA-like CSV", "UTC, as its times say", 0)
    assert np.isnan(found.bars.spread_pips).all()


def test_csv_without_a_zone(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, naive, head=HEAD, zone="America/New_York")
    found = read_bars(path, GBP_JPY)
    assert_same_bars(found.bars, bars)
    zone = "America/New_York"
    assert found.timezone == f"{zone}, inferred from its weekends: 1 of 1 weekend gap fits {zone}"


def test_csv_in_seconds_and_in_another_order(tmp_path: Path, bars: BarSeries) -> None:
    def shuffled(time: datetime, o: str, h: str, low: str, c: str, v: int) -> str:
        return f"{c}, {int(time.timestamp())}.000000000, {o}, {h}, x, {low}"

    found = read_bars(
        write(tmp_path / "a.csv", bars, shuffled, head="Close,Time,Open,High,Note,Low"), GBP_JPY
    )
    for name in ("time_s", "open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(found.bars, name), getattr(bars, name))
    assert (found.bars.volume == 0).all()


def test_histdata(tmp_path: Path, bars: BarSeries) -> None:
    found = read_bars(write(tmp_path / "a.csv", bars, histdata, zone="America/New_York"), GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert found.format == "HistData ASCII"
    assert "America/New_York" in found.timezone


def test_metatrader_4(tmp_path: Path, bars: BarSeries) -> None:
    found = read_bars(
        write(tmp_path / "a.csv", bars, metatrader4, zone="America/New_York", shift_hours=7), GBP_JPY
    )
    assert_same_bars(found.bars, bars)
    assert found.format == "MetaTrader 4"
    assert found.timezone.startswith("New York + 7 h, inferred from its weekends")


def test_metatrader_5(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, metatrader5, head=HEAD_5, zone="America/New_York", shift_hours=7)
    found = read_bars(path, GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert found.format == "MetaTrader 5"
    assert (found.bars.spread_pips == 3.7).all()  # 37 points of 0.001 yen; a pip is 0.01


def test_metatrader_5_in_utf16(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, metatrader5, head=HEAD_5)
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert_same_bars(read_bars(path, GBP_JPY).bars, bars)


def test_dukascopy(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, dukascopy, head="timestamp,open,high,low,close,volume")
    found = read_bars(path, GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert (found.format, found.timezone) == ("Dukascopy", "UTC, as its times say")


def parquet(path: Path, bars: BarSeries, time: Any, **more: Any) -> Path:
    prices = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    arrow.parquet.write_table(arrow.table({"time": time, **(prices | more)}), path)
    return path


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_parquet(tmp_path: Path, bars: BarSeries, unit: str, per_second: int) -> None:
    aware = arrow.array(bars.time_s * per_second, arrow.timestamp(unit, "UTC"))
    found = read_bars(
        parquet(tmp_path / "a.parquet", bars, aware, spread_pips=np.full(len(bars), 1.5)), GBP_JPY
    )
    assert_same_bars(found.bars, bars)
    assert (found.bars.spread_pips == 1.5).all()
    assert (found.format, found.timezone) == ("Parquet", "UTC, as its times say")
    integers = parquet(tmp_path / "b.parquet", bars, bars.time_s * per_second)
    assert_same_bars(read_bars(integers, GBP_JPY).bars, bars)
    local = arrow.array((bars.time_s - 4 * 3600) * per_second, arrow.timestamp(unit))
    found = read_bars(parquet(tmp_path / "c.parquet", bars, local), GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert "New_York" in found.timezone


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_byte_order_mark_blank_lines_and_gzip_are_accepted(
    tmp_path: Path, bars: BarSeries, line_end: str, mark: bytes
) -> None:
    path = write(tmp_path / "a.csv", bars, oanda, head=HEAD)
    lines = path.read_text().splitlines()
    lines[10:10] = ["", ""]
    content = mark + line_end.join([*lines, "", "", ""]).encode()
    for name, data in {"a.csv": content, "b.csv.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(data)
        found = read_bars(tmp_path / name, GBP_JPY)
        assert_same_bars(found.bars, bars)
        assert found.num_dropped == 0


def test_timezone_overrides_what_the_file_says(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, naive, head=HEAD, zone="America/New_York")
    found = read_bars(path, GBP_JPY, ImportOptions(timezone="NY+7"))
    assert (found.bars.time_s == bars.time_s[:30] - 7 * 3600).all()
    assert found.timezone == "New York + 7 h, as requested"
    path_b = write(tmp_path / "b.csv", bars, oanda, head=HEAD)
    found = read_bars(path_b, GBP_JPY, ImportOptions(timezone="+03:00"))
    # The 60 bars after the weekend would now open before it ends.
    assert (found.bars.time_s == bars.time_s[:30] - 3 * 3600).all()
    assert found.num_outside == 60
    with pytest.raises(DataError, match="IANA name"):
        read_bars(path, GBP_JPY, ImportOptions(timezone="Narnia"))


def test_utc_times_that_are_a_servers_clock_are_refused(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars, dukascopy, head=HEAD, zone="America/New_York", shift_hours=7)
    with pytest.raises(FormatError, match=r"30 of 90 bars .*1 weekend gap fits New York \+ 7 h.*--timezone"):
        read_bars(path, GBP_JPY)
    assert_same_bars(read_bars(path, GBP_JPY, ImportOptions("NY+7")).bars, bars)


def test_the_clock_of_a_year_with_missing_bars_is_inferred(tmp_path: Path) -> None:
    year = synthesize(Market.OU, 7_200 * 52, seed=1, start_s=seconds("2023-01-01T22:00"))
    sparse = year[np.random.default_rng(0).random(len(year)) > 0.05]
    path = tmp_path / "a.parquet"
    for zone, shift, named in [
        ("America/New_York", 7, "New York + 7 h"),
        ("Europe/London", 0, "Europe/London"),
        ("Etc/GMT+5", 0, "UTC-5"),
        ("UTC", 0, "UTC"),
    ]:
        offsets = [int(wall(time, zone, shift).timestamp()) - time for time in sparse.time_s[::2000].tolist()]
        known = {
            int(open_minute(np.array([t]))[0]) // 7_200: o
            for t, o in zip(sparse.time_s[::2000].tolist(), offsets, strict=True)
        }
        weeks = open_minute(sparse.time_s) // 7_200
        local = sparse.time_s + np.array([known[week] for week in weeks.tolist()])
        parquet(path, sparse, arrow.array(local, arrow.timestamp("s")))
        found = read_bars(path, GBP_JPY)
        assert found.timezone.startswith(f"{named}, inferred from its weekends")
        np.testing.assert_array_equal(found.bars.time_s, sparse.time_s)


def test_weekends_that_fit_no_zone_are_refused(tmp_path: Path, bars: BarSeries) -> None:
    late = bars[(bars.time_s < FRIDAY + 1800) & (bars.time_s < FRIDAY + 60 * 20)]
    monday = synthesize(Market.OU, 60, seed=1, start_s=seconds("2023-04-03T00:00"))
    columns = [np.concatenate([getattr(late, n), getattr(monday, n)]) for n in
               ("time_s", "open", "high", "low", "close", "volume", "spread_pips")]  # fmt: skip
    path = write(tmp_path / "a.csv", BarSeries(GBP_JPY, *columns), naive, head=HEAD)
    with pytest.raises(
        FormatError, match=r"a\.csv.*fit none.*Fri 2023-03-31 20:50 to Mon 2023-04-03 00:00.*--timezone"
    ):
        read_bars(path, GBP_JPY)
    assert len(read_bars(path, GBP_JPY, ImportOptions(timezone="UTC")).bars) == 80


def test_times_without_a_zone_and_without_a_weekend_are_refused(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars[:30], naive, head=HEAD)
    with pytest.raises(FormatError, match="no weekend gap to infer it from: name the zone with --timezone"):
        read_bars(path, GBP_JPY)


@pytest.mark.parametrize(
    ("step", "name"), [(2, "two-minute"), (5, "five-minute"), (60, "one-hour"), (7, "420-second")]
)
def test_other_than_one_minute_bars_are_refused(tmp_path: Path, step: int, name: str) -> None:
    times = open_minutes(int(open_minute(np.array([FRIDAY]))[0]), 60 * 20)[::step]
    bars = synthesize(Market.OU, len(times), 1)
    path = parquet(tmp_path / "a.parquet", bars, arrow.array(times, arrow.timestamp("s", "UTC")))
    with pytest.raises(FormatError, match=f"{name} bars.*expected one-minute bars"):
        read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=1.0))


GOOD = ["2023-04-03T00:00:00Z,164.3,164.5,164.2,164.4,10", "2023-04-03T00:01:00Z,164.4,164.6,164.3,164.5,11"]
AFTER = "2023-04-03T00:03:00Z,164.5,164.7,164.4,164.6,12"

FAULTS = [
    ("2023-04-03T00:01:00Z,164.4,164.6,164.3,164.5,11", "occurs twice, first in line 3"),
    ("2023-04-02T23:00:00Z,164.4,164.6,164.3,164.5,11", "earlier than 2023-04-03 00:01 UTC in line 3"),
    ("2023-04-03T00:02:00Z,164.4,164.3,164.6,164.5,11", "high 164.3 is below low 164.6"),
    ("2023-04-03T00:02:00Z,164.7,164.6,164.3,164.5,11", "open 164.7 lies outside low 164.3 to high 164.6"),
    ("2023-04-03T00:02:00Z,164.4,164.6,164.3,164.2,11", "close 164.2 lies outside"),
    ("2023-04-03T00:02:00Z,164.4,164.6,nan,164.5,11", "low is nan: expected a number"),
    ("2023-04-03T00:02:00Z,164.4,inf,164.3,164.5,11", "high is inf: expected a number"),
    ("2023-04-03T00:02:00Z,164.4,164.6,0,164.5,11", "low is 0.0: expected a positive price"),
    ("2023-04-03T00:02:00Z,-4,164.6,-5,164.5,11", "open is -4.0: expected a positive price"),
    ("2023-04-03T00:02:00Z,164.4,164.6,,164.5,11", "low is '': expected a number"),
    ("2023-04-03T00:02:00Z,164.4,high,164.3,164.5,11", "high is 'high': expected a number"),
    ("2023-04-03T00:02:00Z,164.4,1_65,164.3,164.5,11", "high is '1_65': expected a number"),
    ("2023-04-03T00:02:00Z,164.4,164.6,164.3,164.5,-1", "volume is -1.0: expected 0 or more"),
    ("2023-04-03T00:02:00Z,164.4,164.6,164.3,164.5,1e300", "volume is 1e\\+300: expected 0 .* below 2\\^62"),
    ("2023-04-03T00:02:30Z,164.4,164.6,164.3,164.5,11", "time 2023-04-03T00:02:30 is not a whole minute"),
    ("2023-02-30T00:02:00Z,164.4,164.6,164.3,164.5,11", "time '2023-02-30T00:02:00Z' cannot be read"),
    ("2023-04-03T00:02:00,164.4,164.6,164.3,164.5,11", "time '2023-04-03T00:02:00' cannot be read"),
    ("9999-04-03T00:02:00Z,164.4,164.6,164.3,164.5,11", "time 253.*outside the years 1970 to 2099"),
    ("soon,164.4,164.6,164.3,164.5,11", "time 'soon' cannot be read"),
    ("2023-04-03T00:02:00Z,164.4,164.6,164.3,164.5", "5 columns, expected 6"),
    ("2023-04-03T00:02:00Z,164.4,164.6,164.3,164.5,11,12", "7 columns, expected 6"),
    ("nonsense", "1 column, expected 6"),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
def test_a_fault_is_refused_with_file_and_line_and_dropped_on_repair(
    tmp_path: Path, row: str, reason: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([HEAD, *GOOD, row, AFTER]) + "\n")
    with pytest.raises(FormatError, match=rf"bad\.csv:4: .*{reason}.*--repair") as caught:
        read_bars(path, GBP_JPY)
    assert caught.value.line == 4
    repaired = read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=1.0))
    assert repaired.num_dropped == 1
    path.write_text("\n".join([HEAD, *GOOD, AFTER]) + "\n")
    assert_same_bars(repaired.bars, read_bars(path, GBP_JPY).bars)


def test_the_error_names_the_first_of_many_faults(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([HEAD, *GOOD, *(row for row, _ in FAULTS[2:]), AFTER]) + "\n")
    with pytest.raises(FormatError, match=r":4: high 164\.3 is below low"):
        read_bars(path, GBP_JPY)
    assert (
        read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=1.0)).num_dropped == len(FAULTS) - 2
    )


def test_lines_are_counted_across_blocks_and_skipped_rows(tmp_path: Path) -> None:
    bars = synthesize(Market.OU, 150_000, seed=1)  # twice the size of a block
    path = write(tmp_path / "bad.csv", bars, oanda, head=HEAD)
    lines = path.read_text().splitlines()
    lines[5] = "short"
    lines[70_000] = ""
    lines[80_000] = "1,2"
    lines[130_000] = lines[130_000].replace("Z,", "Z,-")
    path.write_text("\n".join(lines))
    result = read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=1.0))
    assert (result.num_dropped, len(result.bars)) == (3, 150_000 - 4)
    for fixed, line in ((5, 6), (80_000, 80_001), (130_000, 130_001)):
        with pytest.raises(FormatError) as caught:
            read_bars(path, GBP_JPY)
        assert caught.value.line == line
        lines[fixed] = ""
        path.write_text("\n".join(lines))
    assert read_bars(path, GBP_JPY).num_dropped == 0


def test_an_unreadable_time_at_the_start_of_a_block_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.market.text._BLOCK_BYTES", 4_096)
    path = write(tmp_path / "bad.csv", synthesize(Market.OU, 1_000, seed=1), oanda, head=HEAD)
    lines = path.read_text().splitlines()
    for first in range(200, 280):  # a block has some seventy rows, so one of these is its first
        damaged = [*lines[:first], lines[first].replace("T", "x", 1), *lines[first + 1 :]]
        path.write_text("\n".join(damaged))
        with pytest.raises(FormatError) as caught:
            read_bars(path, GBP_JPY)
        assert caught.value.line == first + 1
        result = read_bars(path, GBP_JPY, ImportOptions(repair=True))
        assert (result.num_dropped, len(result.bars)) == (1, 999)


def test_faults_of_parquet_are_named_by_row(tmp_path: Path, bars: BarSeries) -> None:
    time = arrow.array(bars.time_s, arrow.timestamp("s", "UTC"))
    high = bars.high.copy()
    high[41] = np.nan
    with pytest.raises(FormatError, match=r"a\.parquet: row 42: high is nan"):
        read_bars(parquet(tmp_path / "a.parquet", bars, time, high=high), GBP_JPY)
    twice = bars.time_s.copy()
    twice[8] = twice[7]
    path = parquet(tmp_path / "a.parquet", bars, arrow.array(twice, arrow.timestamp("s", "UTC")))
    with pytest.raises(FormatError, match=r"row 9: .*twice, first in row 8"):
        read_bars(path, GBP_JPY)
    assert read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=1.0)).num_dropped == 1


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"open": None}, "no column open: the file has time, high"),
        ({"time": None}, "no column time"),
        ({"TIME": [1]}, "both contain the time"),
        ({"close": ["x"]}, "column 'close' is of type string: expected numbers"),
        ({"time": ["2023-04-03"]}, "column 'time' is of type string"),
        ({"time": [None]}, "row 1: the time is missing"),
    ],
)
def test_parquet_with_wrong_columns_is_refused(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {"time": [1], "open": [1.0], "high": [1.0], "low": [1.0], "close": [1.0]}
    table = {name: values for name, values in (good | columns).items() if values is not None}
    if table.get("time") == [None]:
        table["time"] = arrow.array([None], arrow.timestamp("s"))
    arrow.parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=rf"a\.parquet: .*{reason}"):
        read_bars(tmp_path / "a.parquet", GBP_JPY)


HOSTILE = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n\r\n", "the file is empty"),
    "header only": (HEAD.encode() + b"\n\n", "a header but no rows"),
    "empty gzip": (gzip.compress(b""), "the file is empty"),
    "prose": (b"Dear reader,\nthis is no bar.\n", "unknown format: the line 'Dear reader,'"),
    "other csv": (b"name,age\nBob,42\n", "unknown format"),
    "noise": (bytes(range(256)) * 40, "binary data"),
    "data set": (bytes(8) + b"DUCK" + bytes(99), "already a data set"),
    "zip": (b"PK\x03\x04" + bytes(200), "this is a zip archive or an Excel workbook: unpack it"),
    "one huge line": (b"9" * 5_000_000, "5,000,000 bytes long"),
    "huge line below": (f"{HEAD}\n{GOOD[0]}\n".encode() + b"1," * 900_000, r"x:3: .*1,800,000 bytes"),
    "cut gzip": (gzip.compress(HEAD.encode() + b"\n" + GOOD[0].encode() * 99)[:-20], "truncated|damaged"),
    "damaged gzip": (b"\x1f\x8b\x08\x00" + b"\xff" * 60, "damaged"),
    "cut parquet": (b"PAR1" + bytes(100), "Parquet data is damaged"),
    "odd utf-16": (b"\xff\xfe\x00", "UTF-16"),
    "time in words": (HEAD.encode() + b"\nnoon,1,1,1,1,1\n", "time 'noon' has an unknown format"),
    "time twice": (b"time,timestamp,open,high,low,close\n1,1,1,1,1,1\n", "2 columns for time: expected one"),
    "no time": (b"when,open,high,low,close\n1,1,1,1,1\n", "expected `time`"),
    "short rows": (HEAD.encode() + b"\n2023-04-03T00:00:00Z,1\n", "2 columns, expected 6"),
    "accents": (HEAD.encode() + "\n2023-04-03T00:00:00Z,1,1,1,1,1é\n".encode(), r"x:2: .*binary data"),
    "nul": (HEAD.encode() + b"\n2023-04-03T00:00:00Z,1,1,1,1,\0\n", "binary data"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("repair", [False, True])
def test_hostile_files_are_refused(tmp_path: Path, name: str, repair: bool) -> None:
    content, reason = HOSTILE[name]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        read_bars(tmp_path / "x", GBP_JPY, ImportOptions(repair=repair))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere\.csv: cannot be read: No such file"):
        read_bars(tmp_path / "nowhere.csv", GBP_JPY)
    with pytest.raises(FormatError, match="a folder or a device"):
        read_bars(tmp_path, GBP_JPY)


def test_a_repair_that_would_leave_no_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"{HEAD}\n2023-04-03T00:00:00Z,1,1,2,1,1\n")
    with pytest.raises(FormatError, match="no row is left after the repair"):
        read_bars(tmp_path / "x", GBP_JPY, ImportOptions(repair=True, max_dropped=1.0))


@given(st.lists(st.integers(0, 12), max_size=12))
def test_repair_drops_as_few_rows_as_possible(times: list[int]) -> None:
    keep = rising(np.array(times, dtype=np.int64))
    kept = [time for time, stays in zip(times, keep.tolist(), strict=True) if stays]
    assert kept == sorted(set(kept))
    best = [0] * len(times)
    for row, time in enumerate(times):  # longest strictly rising subsequence that ends at each row
        best[row] = 1 + max((best[e] for e in range(row) if times[e] < time), default=0)
    assert len(kept) == max(best, default=0)


def test_a_repeated_block_and_a_future_bar_cost_no_other_bar() -> None:
    times = np.array([1, 2, 3, 4, 3, 4, 5, 900, 6, 7, 7, 8])
    assert times[rising(times)].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_progress_increases_to_the_total(tmp_path: Path, bars: BarSeries) -> None:
    for path in (
        write(tmp_path / "a.csv", bars, oanda, head=HEAD),
        parquet(tmp_path / "a.parquet", bars, bars.time_s),
    ):
        calls: list[tuple[int, int]] = []
        read_bars(path, GBP_JPY, progress=lambda done, total, calls=calls: calls.append((done, total)))  # type: ignore[misc]
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]


@pytest.fixture(scope="module")
def exported(real_data: Path) -> ImportResult:
    return read_bars(real_data / "GBPJPY_M1_202304030000_202305151555.mt5.csv.gz", GBP_JPY)


def test_real_metatrader_5_export_has_the_bars_of_the_real_parquet(
    real_data: Path, exported: ImportResult
) -> None:
    original = read_bars(real_data / "GBPJPY_M1_20230402_20230515__gemforex.parquet", GBP_JPY)
    assert (exported.format, original.format) == ("MetaTrader 5", "Parquet")
    zone = "New York + 7 h"
    assert exported.timezone == f"{zone}, inferred from its weekends: 6 of 6 weekend gaps fit {zone}"
    assert original.timezone == "UTC, as its times say"
    assert len(exported.bars) == 44_048
    assert_same_bars(exported.bars, original.bars)
    assert exported.bars.spread_pips[:3].tolist() == [20.0, 18.5, 13.1]
    assert original.bars.range_pips.mean() == pytest.approx(3.31, abs=0.005)


def test_real_bars_in_every_text_format(tmp_path: Path, exported: ImportResult) -> None:
    week = exported.bars[5_000:13_000]
    for row, head, zone, shift in [
        (naive, HEAD, "Europe/London", 0),
        (histdata, "", "America/New_York", 0),
        (metatrader4, "", "America/New_York", 7),
        (dukascopy, HEAD, "UTC", 0),
        (oanda, HEAD, "UTC", 0),
    ]:
        path = write(tmp_path / "a.csv", week, row, head=head, zone=zone, shift_hours=shift)
        assert_same_bars(read_bars(path, GBP_JPY).bars, week)


def test_real_five_minute_bars_are_refused(real_data: Path) -> None:
    with pytest.raises(FormatError, match="five-minute bars"):
        read_bars(real_data / "GBPJPY_M5_20220801_20230421__gemforex.parquet", GBP_JPY)


def test_real_euro_bars_with_weekends_that_fit_no_zone(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "EURUSD_M1_20170102_20190910__binarycom.parquet"
    found = read_bars(path, EUR_USD)
    assert (len(found.bars), found.num_outside) == (978_427 - 76, 76)
    assert found.timezone == "UTC, as its times say"
    assert found.bars.range_pips.mean() < 5
    table = arrow.parquet.read_table(path)
    local = table["time"].cast(arrow.timestamp("us"))
    arrow.parquet.write_table(table.set_column(0, "time", local), tmp_path / "naive.parquet")
    with pytest.raises(FormatError, match=r"140 weekend gaps fit none.*--timezone"):
        read_bars(tmp_path / "naive.parquet", EUR_USD)
    assert (
        read_bars(tmp_path / "naive.parquet", EUR_USD, ImportOptions("UTC")).bars.time_s == found.bars.time_s
    ).all()


def test_a_file_written_newest_first_loses_no_bar(tmp_path: Path, bars: BarSeries) -> None:
    path = write(tmp_path / "a.csv", bars[::-1], oanda, head=HEAD)
    for repair in (False, True):
        found = read_bars(path, GBP_JPY, ImportOptions(repair=repair))
        assert_same_bars(found.bars, bars)
        assert found.num_dropped == 0
        assert "newest bar to the oldest: the rows were sorted" in found.findings[0]


def test_a_file_of_blocks_in_the_wrong_order_loses_no_bar(tmp_path: Path) -> None:
    year = synthesize(Market.OU, 9_000, seed=1)
    joined = year[np.concatenate([np.arange(4_500, 9_000), np.arange(4_500)])]
    path = write(tmp_path / "a.csv", joined, oanda, head=HEAD)
    for repair in (False, True):
        found = read_bars(path, GBP_JPY, ImportOptions(repair=repair))
        assert_same_bars(found.bars, year)
        assert "2 blocks of rows are out of order" in found.findings[0]


def test_a_repair_drops_repetitions_and_refuses_to_drop_many_other_rows(tmp_path: Path) -> None:
    bars = synthesize(Market.OU, 400, seed=1)
    overlapping = bars[np.concatenate([np.arange(250), np.arange(190, 400)])]
    path = write(tmp_path / "a.csv", overlapping, oanda, head=HEAD)
    with pytest.raises(FormatError, match=r"a\.csv:252: .*earlier than.*--repair would drop 60 rows of 460"):
        read_bars(path, GBP_JPY)
    found = read_bars(path, GBP_JPY, ImportOptions(repair=True))
    assert_same_bars(found.bars, bars)
    assert (found.num_dropped, "60 rows, 60 of them repetitions" in found.findings[0]) == (60, True)

    # Every row occurs twice, with different prices, so it is not known which of the two is wrong.
    prices = {name: getattr(bars, name) + 1 for name in ("open", "high", "low", "close")}
    shifted = replace(bars, **prices)
    lines = write(tmp_path / "b.csv", bars, oanda, head=HEAD).read_text().splitlines()
    other = write(tmp_path / "c.csv", shifted, oanda).read_text().splitlines()
    path.write_text("\n".join([*lines, *other]) + "\n")
    wanted = r"--repair would drop 400 rows of 800, more than the limit of 5%.*--max-dropped"
    for repair in (False, True):
        with pytest.raises(FormatError, match=wanted):
            read_bars(path, GBP_JPY, ImportOptions(repair=repair))
    assert read_bars(path, GBP_JPY, ImportOptions(repair=True, max_dropped=0.5)).num_dropped == 400


def test_a_repair_reports_reasons_lines_and_counts(tmp_path: Path) -> None:
    bars = synthesize(Market.OU, 300, seed=1)
    path = write(tmp_path / "a.csv", bars, oanda, head=HEAD)
    lines = path.read_text().splitlines()
    lines[10], lines[20] = "oops", "oops"
    lines[30] = lines[30].replace(lines[30].split(",")[2], "1.0", 1)
    path.write_text("\n".join(lines))
    found = read_bars(path, GBP_JPY, ImportOptions(repair=True))
    assert found.num_dropped == 3
    assert found.findings[0] == "2 rows: line 11: 1 column, expected 6"
    assert found.findings[1].startswith("1 row: line 31: high 1.0 is below low")


@pytest.mark.parametrize(
    ("head", "decimals", "spread", "unit", "pips"),
    [
        ("time,open,high,low,close,tick_volume,spread", 3, "25", None, 2.5),  # MetaTrader's points
        ("time,open,high,low,close,tick_volume,spread", 6, "25", None, 2.5),  # printed with more decimals
        ("time,open,high,low,close,tick_volume,spread", 14, "25", None, 2.5),  # a round trip through floats
        ("time,open,high,low,close,volume,spread", 3, "0.025", None, 2.5),  # units of price
        ("time,open,high,low,close,volume,spread_pips", 3, "2.5", None, 2.5),
        ("time,open,high,low,close,volume,spread", 3, "2.5", SpreadUnit.PIPS, 2.5),
        ("time,open,high,low,close,volume,spread", 3, "25", SpreadUnit.POINTS, 2.5),
        ("time,open,high,low,close,volume,spread", 3, "2.5", SpreadUnit.NONE, np.nan),
        ("time,open,high,low,close,volume,spread", 3, "2.5", None, None),  # pips, or a quarter in points
        ("time,open,high,low,close,volume,spread", 3, "25", None, None),
    ],
)
def test_a_spread_is_converted_to_pips_or_refused(
    tmp_path: Path, bars: BarSeries, head: str, decimals: int, spread: str, unit: SpreadUnit | None,
    pips: float | None,
) -> None:  # fmt: skip
    rows = []
    for bar in range(len(bars)):
        prices = [f"{getattr(bars, name)[bar]:.{decimals}f}" for name in ("open", "high", "low", "close")]
        rows.append(",".join([str(bars.time_s[bar]), *prices, "7", spread]))
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]) + "\n")
    options = ImportOptions(spread_unit=unit)
    if pips is None:
        with pytest.raises(
            FormatError, match=r"unit of the column `spread` is not known.*spread_pips.*--spread-unit"
        ):
            read_bars(tmp_path / "a.csv", GBP_JPY, options)
        return
    found = read_bars(tmp_path / "a.csv", GBP_JPY, options).bars
    np.testing.assert_array_equal(found.spread_pips, np.full(len(bars), pips))


def test_a_faulty_price_does_not_change_the_unit_of_the_spread(tmp_path: Path) -> None:
    """Prices have two decimals, so 3 points are 3 pips. The price that the repair drops has more."""
    rows = [f"2023.01.04\t00:{minute:02}:00\t157.25\t157.27\t157.23\t157.25\t7\t0\t3" for minute in range(30)]
    for faulty_price in ("200.12345", "1e308"):
        rows[5] = f"2023.01.04\t00:05:00\t{faulty_price}\t157.27\t157.23\t157.25\t7\t0\t3"
        path = tmp_path / "a.csv"
        path.write_text("\n".join([HEAD_5, *rows]))
        found = read_bars(path, GBP_JPY, ImportOptions(timezone="UTC", repair=True))
        assert found.num_dropped == 1
        assert (found.bars.spread_pips == 3.0).all()


def test_a_spread_in_parquet_is_converted_to_pips_or_refused(tmp_path: Path, bars: BarSeries) -> None:
    path, half = tmp_path / "a.parquet", np.full(len(bars), 25)
    parquet(path, bars, bars.time_s, spread=half)
    with pytest.raises(FormatError, match="unit of the column `spread` is not known"):
        read_bars(path, GBP_JPY)
    parquet(path, bars, bars.time_s, spread=half, real_volume=half * 0)  # as from MetaTrader's copy_rates
    assert (read_bars(path, GBP_JPY).bars.spread_pips == 2.5).all()


def filled(bars: BarSeries) -> BarSeries:
    """The bars with every missing minute filled, flat and without volume, as in some exports."""
    times = np.arange(bars.time_s[0], bars.time_s[-1] + 60, 60)
    last = np.searchsorted(bars.time_s, times, side="right") - 1
    real = bars.time_s[last] == times
    close = bars.close[last]
    prices = {
        name: np.where(real, getattr(bars, name)[last], close) for name in ("open", "high", "low", "close")
    }
    volume = np.where(real, bars.volume[last], 0)
    return BarSeries(GBP_JPY, times, volume=volume, spread_pips=np.full(len(times), np.nan), **prices)


def test_filler_of_closed_hours_is_left_out_with_and_without_a_zone(tmp_path: Path) -> None:
    bars = synthesize(Market.OU, 2_000, seed=1, start_s=seconds("2023-03-31T04:00"))
    path = write(tmp_path / "a.csv", filled(bars), oanda, head=HEAD)
    found = read_bars(path, GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert found.num_outside == 48 * 60
    (finding,) = found.findings
    assert finding.startswith("left out 2,880 bars outside the trading week")
    assert finding.endswith(", 2,880 of them flat")
    path = write(tmp_path / "b.csv", filled(bars), naive, head=HEAD, zone="America/New_York", shift_hours=7)
    found = read_bars(path, GBP_JPY)
    assert_same_bars(found.bars, bars)
    assert found.timezone.startswith("New York + 7 h, inferred from its weekends")
