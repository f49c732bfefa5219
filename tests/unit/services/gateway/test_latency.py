"""The latency window and the view of releases."""

from protos.headrace.v1.release_pb2 import Release, ReleaseState
from services.gateway.latency import LatencyWindow
from services.gateway.release_view import ReleaseView

CANDIDATE = ReleaseState.RELEASE_STATE_CANDIDATE
LIVE = ReleaseState.RELEASE_STATE_LIVE
RETIRED = ReleaseState.RELEASE_STATE_RETIRED


def test_the_window_forgets_old_answers() -> None:
    window = LatencyWindow(size=100)
    for n in range(300):
        window.add({"total": float(n), "history": 1.0})
    summary = window.summary()
    assert list(summary) == ["history", "total"]
    assert summary["total"] == {"p50_ms": 249.5, "p99_ms": 298.01}
    assert window.num_answers == 300


def test_nothing_measured_is_nothing_shown() -> None:
    assert LatencyWindow().summary() == {}


def test_the_newest_live_record_is_the_live_release() -> None:
    view = ReleaseView()
    assert view.live is None
    view.put(Release(release_id="a", state=LIVE, created_time_ms=1))
    view.put(Release(release_id="b", state=CANDIDATE, created_time_ms=2))
    assert view.live is not None
    assert view.live.release_id == "a"
    view.put(Release(release_id="b", state=LIVE, created_time_ms=2))
    assert view.live.release_id == "b"
    view.put(Release(release_id="a", state=LIVE, created_time_ms=1))
    assert view.live.release_id == "a"
    view.put(Release(release_id="a", state=RETIRED, created_time_ms=1))
    assert view.live.release_id == "b"
    assert [release.release_id for release in view.newest(5)] == ["b", "a"]
