"""Every encoding is compared with the plain pass in time and multiply-adds."""

import pytest

from benchmarks.encodings import bench_encodings
from shared.model.cost import plain_encoding, span_encoding, window_encoding
from tests.shared.model.networks import SMALL


def test_every_encoding_is_measured_against_the_plain_pass() -> None:
    speeds = bench_encodings(SMALL, calls=(1, 6), seconds=0.0)
    spans = {"the agent's pass, float32"}
    by_call = {count: {s.encoding: s for s in speeds if s.windows == count} for count in (1, 6)}
    assert not spans & set(by_call[1])  # no pass over bars for one window
    assert spans <= set(by_call[6])
    assert set(by_call[1]) < set(by_call[6])
    for count, rows in by_call.items():
        plain = rows["the plain pass"]
        assert (plain.measurement.ratio, plain.saving) == (1.0, 1.0)
        assert plain.multiply_adds == plain_encoding(SMALL)
        for speed in rows.values():
            assert speed.measurement.ratio == plain.microseconds / speed.microseconds
            assert speed.saving == pytest.approx(plain.multiply_adds / speed.multiply_adds)
            assert speed.document()["saving"] == speed.saving
        assert rows["only steps that matter"].multiply_adds == window_encoding(SMALL)
        assert rows["the agent's windows, float32"].multiply_adds == window_encoding(SMALL)
        for name in spans & set(rows):
            assert count * rows[name].multiply_adds == span_encoding(SMALL, count)
