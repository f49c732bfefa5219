"""Which release is live, by the records of the topic in order."""

from protos.headrace.v1.release_pb2 import RELEASE_STATE_CANDIDATE as CANDIDATE
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE as LIVE
from protos.headrace.v1.release_pb2 import RELEASE_STATE_RETIRED as RETIRED
from protos.headrace.v1.release_pb2 import Release
from services.releases.fold import Releases


def test_the_newest_live_record_is_the_live_release() -> None:
    view = Releases()
    assert view.live_id == ""
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
    assert [release.release_id for release in view.last_created(5)] == ["b", "a"]
    assert [release.release_id for release in view] == ["b", "a"]
    assert ("a" in view, "c" in view, len(view)) == (True, False, 2)
