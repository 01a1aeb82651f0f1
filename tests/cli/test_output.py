"""How commands print numbers and tables."""

import pytest

from cli.output import figure, out, print_table


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (19_920.4, "19,920"),
        (-1_234.5, "-1,234"),
        (999.96, "1000"),
        (8.5951, "8.595"),
        (0.0, "0"),
        (1e6, "1,000,000"),
    ],
)
def test_large_numbers_are_whole_and_others_have_four_digits(value: float, printed: str) -> None:
    assert figure(value) == printed


COLUMNS = ("name", "every start", "non-overlapping", "first session")


def _printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *cells: object) -> str:
    monkeypatch.setattr(out, "width", 56)
    print_table("title", COLUMNS, [cells])
    return capsys.readouterr().out


def test_a_wide_table_wraps_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = _printed(monkeypatch, capsys, "validation", 1_234, 56, "2024-03-08 21:58 UTC")
    assert max(map(len, printed.splitlines())) <= 56
    words = printed.replace("│", " ").split()
    assert {"validation", "1,234", "non-overlapping", "every", "start", "2024-03-08", "21:58"} <= set(words)


def test_a_word_longer_than_the_line_is_folded_and_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = "".join(f"{number:x}" for number in range(64))
    printed = _printed(monkeypatch, capsys, fingerprint, 1, 2, "3")
    assert max(map(len, printed.splitlines())) <= 56
    assert "…" not in printed
    column = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert "".join(column).removeprefix("name") == fingerprint
