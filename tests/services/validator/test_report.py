import base64
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from services.validator.judgement import write_all
from services.validator.page import page
from services.validator.picture import picture
from services.validator.report import ValidationReport, report_document, write_report
from services.validator.validation import Provenance, Validator, announcement_of, row_of
from shared.adapters.picture import BLUE, GREEN, INK, RED
from shared.adapters.tables.validations import ValidationStore
from shared.errors import DataError
from shared.market.session import Split
from shared.metrics.summary import summarise
from shared.metrics.undefined import UNEXPLAINED, reasons
from tests.services.validator.cases import STANDARDS, agent, small_dataset, starts
from tests.services.validator.report_schema import PATH, report_schema
from tests.services.validator.test_evaluate import METRICS

SERVICE = Provenance("cd" * 32, "service")


@pytest.fixture(scope="module")
def validator() -> Validator:
    return Validator(small_dataset(), Split.VALIDATION, STANDARDS)


@pytest.fixture(scope="module")
def report(validator: Validator) -> ValidationReport:
    return validator.validate(agent(1), SERVICE)


@pytest.fixture
def records(tmp_path: Path) -> ValidationStore:
    return ValidationStore(tmp_path / "validations.duckdb")


def store(records: ValidationStore, report: ValidationReport) -> None:
    records.record(row_of(report, "ab" * 32), report.days, report.daily_pips, announcement_of(report))


def test_a_report_is_json_without_nan(report: ValidationReport, tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    sha256 = write_report(report, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    read = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert (read["schema_version"], read["purpose"], read["weights_sha256"]) == (2, "service", "cd" * 32)
    assert read["version"] == 1
    assert read["summary"]["trades"]["num_trades"] == report.summary.trades.num_trades
    assert len(read["days"]) == len(read["daily_pips"])
    assert read["baselines"][0]["name"] == "flat"
    assert read["num_sessions"] == read["num_sessions_in_split"] == len(starts())
    assert read["baselines"][2]["rival"]["name"] == "always long"
    assert read["summary"]["honesty"]["trials"]["num_tried"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_every_report_matches_the_published_schema(validator: Validator, report: ValidationReport) -> None:
    published = json.loads(PATH.read_text())
    assert published == report_schema(), "run `python -m tests.services.validator.report_schema`"
    Draft202012Validator.check_schema(published)
    reports = [report, validator.validate(agent(2), Provenance("cd" * 32)), idle(report)]
    for document in [json.loads(json.dumps(report_document(report), allow_nan=False)) for report in reports]:
        Draft202012Validator(published).validate(document)
        for invalid in ({"weights_sha256": None}, {"purpose": "audit"}, {"more": 1}, {"daily_pips": ["1"]}):
            assert not Draft202012Validator(published).is_valid({**document, **invalid})
        del document["standards"]
        assert not Draft202012Validator(published).is_valid(document)


def test_every_null_number_has_a_reason_and_no_other_has(
    validator: Validator, report: ValidationReport
) -> None:
    for checked in (report, idle(report)):
        document = report_document(checked)
        judged = {
            name: document[name] for name in ("summary", "activity", "baselines", "months", "overfitting")
        }
        nulls = {path for path in paths_of_nulls(judged) if not path.endswith("reason")}
        assert set(checked.undefined) == nulls
        assert UNEXPLAINED not in checked.undefined.values()
    assert (
        report.undefined["summary.daily.sharpe"] == f"{len(report.days)} days: fewer than 60, not annualised"
    )
    assert idle(report).undefined["summary.trades.win_rate"] == "no trade"


def paths_of_nulls(value: object, path: str = "") -> Iterator[str]:
    """Dotted paths of the nulls in a JSON document; independent of the report's dataclasses."""
    if value is None:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from paths_of_nulls(item, f"{path}.{name}" if path else str(name))


def idle(report: ValidationReport) -> ValidationReport:
    """The report of a version that never trades."""
    nothing = np.zeros(len(report.days))
    summary = summarise(np.zeros(0), nothing, nothing, METRICS)
    months = tuple(
        replace(month, pips=0.0, num_trades=0, win_rate=None, expectancy_pips=None) for month in report.months
    )
    activity = replace(report.activity, turnover_per_day=0.0, trade_ratio=0.0, exposure=0.0)
    kept = {
        path: reason
        for path, reason in report.undefined.items()
        if not path.startswith(("summary", "months"))
    }
    return replace(
        report,
        summary=summary,
        activity=activity,
        realised_pips=np.zeros(0),
        daily_pips=nothing,
        months=months,
        undefined={**kept, **reasons(summary, "summary"), **reasons(months, "months")},
    )


def test_a_report_records_every_setting_that_it_depends_on(report: ValidationReport) -> None:
    """A report with other thresholds, costs, seeds or sessions can thus be recognised."""
    judged = STANDARDS.document()
    assert report.standards == judged
    for change in (
        {"gate": replace(STANDARDS.gate, live_min_years=0.0)},
        {"environment": replace(STANDARDS.environment, spread_pips=0.0)},
        {"search": replace(STANDARDS.search, simulations=3)},
        {"monte_carlo": replace(STANDARDS.monte_carlo, seed=1)},
        {"sizing": replace(STANDARDS.sizing, seed=1)},
        {"validation": replace(STANDARDS.validation, max_sessions=4)},
    ):
        assert replace(STANDARDS, **change).document() != judged
    assert replace(STANDARDS, validation=replace(STANDARDS.validation, lanes=3)).document() == judged


def test_a_report_made_on_demand_passes_no_gate(validator: Validator) -> None:
    report = validator.validate(agent(1), Provenance("cd" * 32))
    assert report.purpose == "on-demand"
    assert report.passed_gates == ()
    assert report.reasons[0] == "made on demand: only a report of the validator service can pass a gate"


def test_a_limited_report_names_the_number_of_sessions_in_the_split(report: ValidationReport) -> None:
    some = replace(STANDARDS, validation=replace(STANDARDS.validation, max_sessions=4))
    limited = Validator(small_dataset(), Split.VALIDATION, some).validate(agent(1), SERVICE)
    assert (limited.num_sessions, limited.num_sessions_in_split) == (4, report.num_sessions)


def test_the_same_version_gives_the_same_report(validator: Validator, report: ValidationReport) -> None:
    again = report_document(validator.validate(agent(1), SERVICE))
    first = report_document(report)
    for moment in ("created_at", "seconds"):
        again.pop(moment), first.pop(moment)
    assert again == first


def test_earlier_versions_count_as_trials_and_the_best_must_be_beaten(
    validator: Validator, report: ValidationReport, records: ValidationStore
) -> None:
    store(records, report)
    store(records, validator.validate(agent(2), Provenance("22" * 32, "service"), records=records, best=1))
    third = validator.validate(agent(3), Provenance("33" * 32, "service"), records=records, best=1)
    assert third.num_versions_tried == 3
    assert third.summary.honesty.trials.num_tried == 3
    assert third.overfitting.reason is not None
    assert third.incumbent == 1
    beaten = third.summary.trades.sqn100, report.summary.trades.sqn100
    assert ("paper" in third.passed_gates) == (
        beaten[0] is not None and (beaten[1] is None or beaten[0] > beaten[1])
    )


def test_a_version_is_neither_its_own_rival_nor_its_own_earlier_trial(
    validator: Validator, report: ValidationReport, records: ValidationStore
) -> None:
    store(records, report)
    again = validator.validate(agent(1), SERVICE, records=records, best=1)
    assert again.incumbent is None
    assert again.num_versions_tried == 1


def test_a_best_version_without_a_judgement_on_this_data_need_not_be_beaten(
    validator: Validator, records: ValidationStore
) -> None:
    assert validator.validate(agent(1), SERVICE, records=records, best=9).incumbent is None


def test_the_database_keeps_judged_and_skipped_versions(
    validator: Validator, report: ValidationReport, records: ValidationStore
) -> None:
    assert records.done(validator.scope) == set()
    store(records, report)
    store(records, report)
    records.skip(validator.scope, 5, "gone")
    assert records.done(validator.scope) == {1, 5}
    assert records.sqn100(validator.scope, 1) == (True, report.summary.trades.sqn100)
    assert records.sqn100(validator.scope, 5) == (False, None)


def test_the_error_names_a_damaged_database(validator: Validator, tmp_path: Path) -> None:
    path = tmp_path / "broken.duckdb"
    path.write_bytes(b"no database")
    with pytest.raises(DataError, match=r"broken\.duckdb"):
        ValidationStore(path).done(validator.scope)


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        self.links.extend(value or "" for name, value in attrs if name in {"src", "href"})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_and_self_contained(report: ValidationReport, tmp_path: Path) -> None:
    write_all(report, tmp_path / "1.json", with_page=True)
    assert {path.name for path in tmp_path.iterdir()} == {"1.json", "1.html", "1.png"}
    assert base64.b64encode((tmp_path / "1.png").read_bytes()).decode() in (tmp_path / "1.html").read_text()
    outline = _Outline()
    outline.feed((tmp_path / "1.html").read_text())
    assert outline.open == []
    assert all(link.startswith("data:image/png") for link in outline.links)
    text = (tmp_path / "1.html").read_text()
    assert "moving-average cross" in text
    assert "by the validator service" in text
    assert "not annualised" in text
    later = replace(report, superseded_by=9, purpose="on-demand", num_sessions=3)
    text = page(later, b"")
    assert "Version 9 was published before this one was judged." in text
    assert f"3 of {report.num_sessions_in_split} sessions" in text
    assert "on demand" in text


#: Top and bottom of each panel of the picture, as shares of its height.
PANELS = {"fan": (0.0, 0.49), "drawdown": (0.5, 0.74), "months": (0.76, 1.0)}


def num_pixels(png: bytes, panel: str, colour: str, opacity: float = 1.0) -> int:
    """How many pixels of a panel have a colour, drawn on white with an opacity."""
    image = matplotlib.image.imread(io.BytesIO(png))[:, :, :3]
    assert image.shape == (1100, 1210, 3)
    top, bottom = (int(share * len(image)) for share in PANELS[panel])
    wanted = opacity * np.array(matplotlib.colors.to_rgb(colour)) + 1.0 - opacity
    return int((np.abs(image[top:bottom] - wanted).max(axis=2) < 0.05).sum())


def with_month_of(report: ValidationReport, pips: float) -> ValidationReport:
    return replace(report, months=(replace(report.months[0], pips=pips),))


def test_the_picture_shows_fan_drawdown_and_months(report: ValidationReport) -> None:
    gain, loss = (picture(with_month_of(report, pips)) for pips in (200.0, -200.0))
    nothing = picture(idle(report))
    assert num_pixels(gain, "fan", BLUE, 0.12) > 20_000  # the band of 5 to 95 %
    assert num_pixels(gain, "fan", BLUE) > 500  # the median
    assert num_pixels(gain, "fan", INK) > num_pixels(nothing, "fan", INK) + 500  # the actual curve
    assert num_pixels(gain, "drawdown", RED, 0.25) > 20_000
    assert num_pixels(gain, "months", GREEN, 0.85) > 20_000 > num_pixels(gain, "months", RED, 0.85)
    assert num_pixels(loss, "months", RED, 0.85) > 20_000 > num_pixels(loss, "months", GREEN, 0.85)
    for panel, colour, opacity in (("fan", BLUE, 1.0), ("drawdown", RED, 0.25), ("months", GREEN, 0.85)):
        assert num_pixels(nothing, panel, colour, opacity) == 0


def test_a_version_that_never_trades_has_a_page_too(report: ValidationReport) -> None:
    flat = idle(report)
    text = page(flat, picture(flat))
    assert '<span class="why">no trade</span>' in text
    after_heading = text.split("<h2>Monte Carlo</h2>")[1].split("</section>")[0]
    assert after_heading.count("<tr>") == 2
    assert '<td><span class="why">no trade</span></td>' in after_heading
    assert f'<span class="why">{flat.summary.sizing.reason}</span>' in text  # this class wraps on a phone
    assert f"judged {flat.created_at[:10]} {flat.created_at[11:16]} UTC" in " ".join(text.split())
    assert "not annualised" in text
    assert "–" not in text
