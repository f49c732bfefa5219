"""The replay of the demo, as it is told where there is no terminal."""

import io
from typing import Any, cast

from rich.console import Console
from rich.live import Live

from services.demo.live import LiveReplay
from services.demo.traffic import Traffic


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    nothing = cast(Any, None)
    replay = LiveReplay(
        dataset=nothing,
        begin=1_000,
        end=31_000,
        producer=nothing,
        learner=nothing,
        traffic=Traffic(nothing, user_ids=["u"], known_item_ids=set()),
        announced=set(),
        num_sent=2_500,
    )
    replay.traffic.report.num_answered = 1_237
    replay.status.live_release_id = "r1"
    file = io.StringIO()
    with Live(console=Console(file=file, width=40), transient=True) as live:
        for half_seconds in range(50):
            replay._show(live, 40 * half_seconds, half_seconds / 2)
    lines = [line for line in file.getvalue().splitlines() if line]
    assert len(lines) == 3
    assert lines[1] == (
        "events sent 2,500 of 30,000, learned 800, 80/s; answers 1,237 (0 failed or invalid), release r1"
    )
