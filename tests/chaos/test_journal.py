"""The journal of a scenario."""

from pathlib import Path

from tests.chaos.journal import Journal


def test_a_half_written_line_is_left_for_the_next_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("begin")
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[:40])
    assert [line["event"] for line in journal.lines()] == ["begin"]
    journal.path.write_bytes(whole + whole)
    assert [line["event"] for line in journal.lines()] == ["begin", "begin"]
    journal.close()
