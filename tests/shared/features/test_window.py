"""Temporal features: equal to their formulas, the same live as in history, independent of later bars."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import DataError, ShapeError
from shared.features.kernels import FIRST_VALID_BAR, NUM_FEATURES
from shared.features.window import (
    FEATURE_NAMES,
    FIRST_WINDOW_BAR,
    WINDOW_BARS,
    FeatureStream,
    temporal_features,
    window,
    windows,
)
from shared.market.bar import BarSeries, Instrument
from shared.numeric import Float32
from tests.oracles import features as oracle
from tests.shared.features.series import START_S, bars_of, random_bars

GBP_JPY = Instrument.named("GBP_JPY")


def live(bars: BarSeries) -> tuple[Float32, FeatureStream]:
    """The rows that a stream returns for bars pushed one at a time, NaN if it returns none."""
    stream = FeatureStream(bars.instrument)
    rows = np.full((len(bars), NUM_FEATURES), np.nan, np.float32)
    for bar, (time_s, close) in enumerate(zip(bars.time_s.tolist(), bars.close.tolist(), strict=True)):
        row = stream.push(time_s, close)
        assert (row is None) == (bar < FIRST_VALID_BAR)
        if row is not None:
            rows[bar] = row
    return rows, stream


class TestFormulas:
    def test_names_and_sizes_equal_the_specification(self) -> None:
        assert (FIRST_VALID_BAR, FIRST_WINDOW_BAR, WINDOW_BARS) == (119, 150, 32)
        assert len(FEATURE_NAMES) == NUM_FEATURES == 9

    @given(random_bars(min_size=120, max_size=200))
    def test_every_column_equals_the_oracle(self, bars: BarSeries) -> None:
        features = temporal_features(bars)
        for bar in {FIRST_VALID_BAR, (FIRST_VALID_BAR + len(bars)) // 2, len(bars) - 1}:
            expected = oracle.features_at(bars.time_s, bars.close, 0.01, bar)
            np.testing.assert_allclose(features[bar], expected, rtol=2e-7, atol=6e-8)

    def test_every_column_equals_the_oracle_on_real_bars(self, real_bars: BarSeries) -> None:
        features = temporal_features(real_bars)
        random = np.random.default_rng(0)
        for bar in [FIRST_VALID_BAR, *random.integers(FIRST_VALID_BAR, len(real_bars), 100)]:
            expected = oracle.features_at(real_bars.time_s, real_bars.close, 0.01, int(bar))
            np.testing.assert_allclose(features[bar], expected, rtol=2e-7, atol=6e-8)

    def test_every_column_equals_pandas_on_real_bars(self, real_bars: BarSeries) -> None:
        def min_max_scaled(values: "pd.Series[float]") -> "pd.Series[float]":
            lowest, highest = values.rolling(60).min(), values.rolling(60).max()
            return ((values - lowest) / (highest - lowest)).where(highest != lowest, 0.5)

        close = pd.Series(real_bars.close)
        local = pd.to_datetime(pd.Series(real_bars.time_s), unit="s", utc=True).dt.tz_convert(
            "America/New_York"
        )
        since_sunday_17 = local.dt.tz_localize(None) + pd.Timedelta(hours=7)
        days = since_sunday_17.dt.day_of_week
        hours = 24 * days + since_sunday_17.dt.hour + since_sunday_17.dt.minute / 60
        columns = [
            min_max_scaled(close),
            min_max_scaled(close.diff(60)),
            min_max_scaled(close.rolling(60).max() - close.rolling(60).min()),
            min_max_scaled(close.diff(5)),
            np.tanh(close.diff() / 0.01 / 10),
            np.cos(2 * np.pi * days / 5),
            np.sin(2 * np.pi * days / 5),
            np.cos(2 * np.pi * hours / 120),
            np.sin(2 * np.pi * hours / 120),
        ]
        expected = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
        features = temporal_features(real_bars)
        in_week = np.array(hours < 120)
        assert in_week.mean() > 0.99
        in_week[:FIRST_VALID_BAR] = False
        np.testing.assert_allclose(features[in_week], expected[in_week], rtol=2e-7, atol=6e-8)

    @given(random_bars())
    def test_values_are_undefined_before_the_120th_bar_and_never_after(self, bars: BarSeries) -> None:
        features = temporal_features(bars)
        assert features.shape == (len(bars), NUM_FEATURES)
        assert features.dtype == np.float32
        assert np.isnan(features[:FIRST_VALID_BAR]).all()
        assert np.isfinite(features[FIRST_VALID_BAR:]).all()

    def test_constant_closes_are_in_the_middle_of_every_scale(self) -> None:
        bars = bars_of(START_S + 60 * np.arange(130), np.full(130, 160.123))
        assert (temporal_features(bars)[FIRST_VALID_BAR:, :4] == 0.5).all()
        assert (temporal_features(bars)[FIRST_VALID_BAR:, 4] == 0.0).all()

    @pytest.mark.parametrize("change_pips", [0.0, 0.001, 0.1, 3.0, 10.0, 60.0, 99.0, 150.0, 9_000.0])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_price_change_is_the_tanh_of_a_tenth_of_the_pips(self, change_pips: float, sign: int) -> None:
        close = np.full(120, 200.0)
        close[-1] += sign * change_pips * 0.01
        change = temporal_features(bars_of(START_S + 60 * np.arange(120), close))[-1, 4]
        assert change == pytest.approx(
            math.tanh(sign * change_pips / 10), rel=1e-7 + 1e-12 / (change_pips + 1e-9)
        )

    @pytest.mark.parametrize(
        ("time", "day", "hours"),
        [
            ("2023-04-02T21:00", 0, 0.0),  # Sunday 17:00 in summer time
            ("2023-04-03T20:59", 0, 23 + 59 / 60),
            ("2023-04-03T21:00", 1, 24.0),
            ("2023-04-07T20:59", 4, 119 + 59 / 60),
            ("2023-01-08T22:00", 0, 0.0),  # Sunday 17:00 in winter time
            ("2023-03-12T21:00", 0, 0.0),  # the clocks changed this Sunday
            ("2023-04-07T21:07", 4, 119 + 59 / 60),  # after Friday's close: the week's last minute
        ],
    )
    def test_day_and_hour_count_from_the_opening_of_the_trading_week(
        self, time: str, day: int, hours: float
    ) -> None:
        last_s = int(np.datetime64(time, "s").astype(np.int64))
        row = temporal_features(bars_of(last_s - 60 * np.arange(119, -1, -1), np.full(120, 160.0)))[-1]
        day_angle, hour_angle = 2 * math.pi * day / 5, 2 * math.pi * hours / 120
        expected = [math.cos(day_angle), math.sin(day_angle), math.cos(hour_angle), math.sin(hour_angle)]
        np.testing.assert_allclose(row[5:], expected, rtol=2e-7, atol=1e-7)

    @pytest.mark.parametrize("cores", [1, 2, 7])
    def test_rows_do_not_depend_on_the_number_of_cores(
        self, real_bars: BarSeries, monkeypatch: pytest.MonkeyPatch, cores: int
    ) -> None:
        monkeypatch.setattr("shared.features.window.LEAST_PART_BARS", len(real_bars) + 1)
        alone = temporal_features(real_bars)
        monkeypatch.setattr("shared.features.window.LEAST_PART_BARS", 1_000)
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        assert temporal_features(real_bars).tobytes() == alone.tobytes()

    def test_price_change_uses_the_pip_of_the_instrument(self) -> None:
        close = np.full(120, 1.1)
        close[-1] += 0.0005
        time_s = START_S + 60 * np.arange(120)
        ones = np.ones(120, np.int64)
        bars = BarSeries(Instrument.named("EUR_USD"), time_s, close, close, close, close, ones, close)
        assert temporal_features(bars)[-1, 4] == pytest.approx(math.tanh(0.5), rel=1e-6)


class TestLive:
    @given(random_bars(max_size=260))
    @example(bars_of(START_S + 60 * np.arange(200), np.full(200, 160.1)))
    def test_one_bar_at_a_time_equals_history_bit_for_bit(self, bars: BarSeries) -> None:
        rows, stream = live(bars)
        features = temporal_features(bars)
        assert rows.tobytes() == features.tobytes()
        last = stream.window()
        if len(bars) <= FIRST_WINDOW_BAR:
            assert last is None
        else:
            assert last is not None
            assert last.tobytes() == window(features, len(bars) - 1).tobytes()

    def test_one_bar_at_a_time_equals_history_bit_for_bit_on_real_bars(self, real_bars: BarSeries) -> None:
        rows, stream = live(real_bars)
        assert rows.tobytes() == temporal_features(real_bars).tobytes()
        assert len(stream) == len(real_bars)

    def test_a_returned_window_does_not_change_later(self) -> None:
        bars = bars_of(START_S + 60 * np.arange(160), 160.0 + np.sin(np.arange(160)))
        _, stream = live(bars)
        first = stream.window()
        assert first is not None
        before = first.copy()
        stream.push(START_S + 60 * 160, 150.0)
        assert (first == before).all()

    @pytest.mark.parametrize(
        ("time_s", "close", "text"),
        [
            (START_S + 60 * 159, 160.0, "a time after the previous bar, 2023-04-02T"),
            (START_S, 160.0, "after the previous bar"),
            (START_S + 60 * 160, math.nan, "close nan, expected a positive number"),
            (START_S + 60 * 160, math.inf, "close inf, expected a positive number"),
            (START_S + 60 * 160, 0.0, "close 0.0, expected a positive number"),
            (START_S + 60 * 160, -1.0, "close -1.0, expected a positive number"),
            (2**40, 160.0, "outside the years 1970 to 2099"),
        ],
    )
    def test_a_refused_bar_leaves_the_stream_unchanged(self, time_s: int, close: float, text: str) -> None:
        bars = bars_of(START_S + 60 * np.arange(161), 160.0 + np.sin(np.arange(161)))
        _, stream = live(bars[:160])
        with pytest.raises(DataError, match=text):
            stream.push(time_s, close)
        assert len(stream) == 160
        row = stream.push(int(bars.time_s[160]), float(bars.close[160]))
        assert row is not None
        assert row.tobytes() == temporal_features(bars)[160].tobytes()

    def test_a_first_bar_before_1970_is_refused(self) -> None:
        stream = FeatureStream(GBP_JPY)
        with pytest.raises(DataError, match="outside the years 1970 to 2099"):
            stream.push(-5, 160.0)
        assert len(stream) == 0


class TestNoLookAhead:
    """Removing or corrupting later bars changes no value."""

    @given(random_bars(min_size=130), st.data())
    def test_later_bars_change_nothing(self, bars: BarSeries, data: st.DataObject) -> None:
        bar = data.draw(st.integers(FIRST_VALID_BAR, len(bars) - 1))
        features = temporal_features(bars)
        assert temporal_features(bars[: bar + 1]).tobytes() == features[: bar + 1].tobytes()
        later = np.arange(len(bars)) > bar
        corrupted = bars_of(
            bars.time_s + later * 7_777_777, np.where(later, 1e4 * np.cos(bars.close) ** 2 + 1.0, bars.close)
        )
        assert temporal_features(corrupted)[: bar + 1].tobytes() == features[: bar + 1].tobytes()

    def test_later_bars_change_nothing_on_real_bars(self, real_bars: BarSeries) -> None:
        features = temporal_features(real_bars)
        random = np.random.default_rng(1)
        for bar in random.integers(FIRST_VALID_BAR, len(real_bars), 20):
            assert temporal_features(real_bars[: bar + 1]).tobytes() == features[: bar + 1].tobytes()

    @given(random_bars(min_size=140, max_size=300))
    def test_bars_older_than_119_bars_change_nothing(self, bars: BarSeries) -> None:
        features = temporal_features(bars)
        assert temporal_features(bars[-120:])[-1].tobytes() == features[-1].tobytes()


class TestRefusals:
    def test_no_bars_have_no_features(self) -> None:
        assert temporal_features(bars_of(np.array([], np.int64), np.array([]))).shape == (0, 9)

    @pytest.mark.parametrize("close", [math.nan, 0.0, -3.0, math.inf])
    def test_a_close_that_is_not_a_price_is_refused_with_bar_and_time(self, close: float) -> None:
        bars = bars_of(START_S + 60 * np.arange(5), np.array([160.0, 161.0, 162.0, close, 163.0]))
        with pytest.raises(DataError, match=r"bar 3 at 2023-04-02T.*close .* expected a positive number"):
            temporal_features(bars)

    def test_times_that_do_not_increase_are_refused(self) -> None:
        bars = bars_of(START_S + np.array([0, 60, 60, 120]), np.full(4, 160.0))
        with pytest.raises(DataError, match=r"bar 2 at .* after the previous bar"):
            temporal_features(bars)


class TestWindows:
    def test_a_window_holds_the_32_rows_that_end_with_its_bar(self) -> None:
        features = np.arange(200 * 9, dtype=np.float32).reshape(200, 9)
        assert (window(features, 150) == features[119:151]).all()
        many = windows(features, np.array([199, 150, 160]))
        assert many.shape == (3, 32, 9)
        assert many.dtype == np.float32
        for one, bar in zip(many, (199, 150, 160), strict=True):
            assert (one == features[bar - 31 : bar + 1]).all()

    @pytest.mark.parametrize("bar", [-1, 149, 200])
    def test_a_bar_without_a_full_window_is_refused(self, bar: int) -> None:
        with pytest.raises(DataError, match=f"bar {bar} has no temporal window.*150 to 199"):
            window(np.zeros((200, 9), np.float32), bar)

    def test_features_of_another_width_are_refused(self) -> None:
        with pytest.raises(ShapeError, match="features"):
            windows(np.zeros((200, 8), np.float32), np.array([160]))
