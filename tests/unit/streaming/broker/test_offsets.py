"""What groups committed: damaged lines are passed over."""

from pathlib import Path

from streaming.broker.offsets import GroupOffsets


def test_damaged_lines_among_the_commits_are_passed_over(tmp_path: Path) -> None:
    lines = [
        '["g", "t", 0, Infinity, null]',
        "[" * 100_000,
        '["g", "t", 1, 5, null]',
        '["g", "t", 2, 7, ["text"]]',
        '["g", "t", 3',
    ]
    (tmp_path / "offsets.jsonl").write_text("\n".join(lines))
    for _ in range(2):
        offsets = GroupOffsets(tmp_path)
        assert {partition: one.offset for (_, partition), one in offsets.of("g").items()} == {1: 5, 2: 7}
        offsets.close()
