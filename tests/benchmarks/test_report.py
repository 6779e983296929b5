"""Answers as tables and as pictures."""

from pathlib import Path

from benchmarks.children import Servers
from benchmarks.peers import Peer, _missing
from benchmarks.plots import curves_of, draw
from benchmarks.report import Report, markdown, text
from benchmarks.runner import Figure, Latency, Ratio, Sample, lines

FAST, SLOW = Sample(2_000.0, 25.0, Latency(5.0, 6.0, 7.0)), Sample(1_000.0, 50.0, Latency(9.0, 9.5, 9.9))
REPORT = Report(
    "engine: a question",
    "steps/s",
    lines({"a, 1 at once": [FAST, SLOW], "a, 100 at once": [FAST, FAST], "ceiling": [Sample(4_000.0, 0.0)]}),
    (
        Ratio("a / b", Figure(1.5, 1.0, 2.0), at_least=2.0),
        Ratio("b / a", Figure(0.4, 0.3, 0.5), at_most=0.5),
        Ratio("c / a", Figure(0.4, 0.3, 0.5)),
    ),
    ("a peer is not installed",),
    {"python": "3.11"},
)


def test_a_table_shows_medians_spread_times_and_what_is_missed() -> None:
    table = text(REPORT)
    assert "1,500" in table
    assert "1,000 - 2,000" in table
    assert "37.5" in table
    assert "7.00" in table
    assert "at least 2: missed by 25%" in table
    assert "at most 0.5: met" in table
    assert "skipped: a peer is not installed" in table
    assert "python 3.11" in table


def test_a_page_gets_tables_of_the_same_figures() -> None:
    page = markdown(REPORT)
    assert "| a, 1 at once | 1,500 (1,000–2,000) | 37.5 | 7.00 | 7.75 |" in page
    assert "| ceiling | 4,000 (4,000–4,000) |  |  |  |" in page
    assert "| a / b | 1.50 (1.00–2.00) | at least 2: missed by 25% |" in page
    assert "| c / a | 0.40 (0.30–0.50) |  |" in page
    assert "Skipped: a peer is not installed." in page


def test_what_was_measured_at_several_concurrencies_is_a_curve(tmp_path: Path) -> None:
    assert {name: [at_once for at_once, _ in points] for name, points in curves_of(REPORT.lines).items()} == {
        "a": [1, 100]
    }
    files = draw([REPORT, Report("core: no curves", "1/s", ())], tmp_path)
    assert sorted(file.name for file in files) == ["engine.png", "engine.svg"]
    assert "engine: a question" in (tmp_path / "engine.svg").read_text()


def test_a_peer_that_cannot_be_measured_says_what_it_needs() -> None:
    without = Servers("amqp://nowhere", None, ("memory", "sqlite"), {}, ())
    peer = Peer("A peer", "peer", "postgres", (), (1,))
    assert _missing(peer, without) == "PostgreSQL"
    assert "no_such_package" in _missing(peer._replace(store="", needs=("no_such_package",)), without)
    assert not _missing(peer._replace(store=""), without)
