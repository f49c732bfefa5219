"""The embedded broker's consumer groups: every call of Kafka's classic protocol, in and out of turn."""

import asyncio
from typing import Any

import pytest
from kafka.errors import (
    FencedInstanceIdError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    KafkaError,
    MemberIdRequiredError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from streaming.broker.groups import Group, GroupError, Joined


async def join(group: Group, member_id: str = "", **changes: Any) -> Joined:
    fields: dict[str, Any] = {
        "client_id": "client",
        "instance": None,
        "protocol_type": "consumer",
        "protocols": {"range": b"topics"},
        "session_s": 10.0,
        "rebalance_s": 0.5,
        "must_know_id": False,
    }
    return await group.join(member_id, **(fields | changes))


async def refused(call: Any) -> type[KafkaError]:
    async def run() -> None:
        result = call()
        if asyncio.iscoroutine(result):
            await result

    with pytest.raises(GroupError) as caught:
        await run()
    kinds = [
        FencedInstanceIdError,
        IllegalGenerationError,
        InconsistentGroupProtocolError,
        MemberIdRequiredError,
        RebalanceInProgressError,
        UnknownMemberIdError,
    ]
    (kind,) = [kind for kind in kinds if kind.errno == caught.value.code]
    return kind


async def test_two_members_share_what_the_leader_says() -> None:
    group = Group("g")
    first, second = await asyncio.gather(join(group), join(group))
    assert first.generation == second.generation == 1
    leader, follower = (first, second) if first.member_id == first.leader else (second, first)
    assert {id_ for id_, _, _ in leader.members} == {first.member_id, second.member_id}
    assert follower.members == []
    waiting = asyncio.create_task(group.sync(follower.member_id, 1, {}, None))
    await asyncio.sleep(0)
    given = {leader.member_id: b"0", follower.member_id: b"1"}
    assert await group.sync(leader.member_id, 1, given, None) == b"0"
    assert await waiting == b"1"
    assert group.state == "Stable"
    group.heartbeat(follower.member_id, 1, None)


async def test_a_member_that_comes_later_makes_all_join_again() -> None:
    group = Group("g")
    first = await join(group)
    await group.sync(first.member_id, 1, {first.member_id: b"all"}, None)
    coming = asyncio.create_task(join(group))
    await asyncio.sleep(0)
    assert await refused(lambda: group.heartbeat(first.member_id, 1, None)) is RebalanceInProgressError
    again = await join(group, first.member_id)
    assert again.generation == (await coming).generation == 2
    assert await refused(lambda: group.sync(first.member_id, 1, {}, None)) is IllegalGenerationError


async def test_who_does_not_join_again_in_time_is_out() -> None:
    group = Group("g")
    first = await join(group)
    await group.sync(first.member_id, 1, {}, None)
    second = await join(group)
    assert second.leader == second.member_id
    assert await refused(lambda: group.heartbeat(first.member_id, 1, None)) is UnknownMemberIdError


async def test_a_member_that_falls_silent_is_out() -> None:
    group = Group("g")
    first = await join(group, session_s=0.0)
    await group.sync(first.member_id, 1, {}, None)
    await asyncio.sleep(0.6)
    group.expire()
    assert group.state == "Empty"
    assert await refused(lambda: group.heartbeat(first.member_id, 1, None)) is UnknownMemberIdError


async def test_a_static_member_takes_its_place_again_without_a_rebalance() -> None:
    group = Group("g")
    old = await join(group, instance="worker-0")
    await group.sync(old.member_id, 1, {old.member_id: b"all"}, "worker-0")
    new = await join(group, instance="worker-0", must_know_id=True)
    assert (new.generation, new.members) == (1, [])
    assert new.leader != new.member_id  # so that it does not assign anew
    assert await group.sync(new.member_id, 1, {}, "worker-0") == b"all"
    assert await refused(lambda: group.heartbeat(old.member_id, 1, "worker-0")) is FencedInstanceIdError
    other = asyncio.create_task(join(group))
    await asyncio.sleep(0)
    again = await join(group, new.member_id, instance="worker-0")
    assert again.generation == (await other).generation == 2


async def test_calls_out_of_turn_are_refused() -> None:
    group = Group("g")
    assert await refused(lambda: join(group, "nobody")) is UnknownMemberIdError
    assert await refused(lambda: group.leave("nobody")) is UnknownMemberIdError
    with pytest.raises(GroupError) as caught:
        await join(group, must_know_id=True)
    assert caught.value.code == MemberIdRequiredError.errno
    member = await join(group, caught.value.member_id, must_know_id=True)
    assert await refused(lambda: join(group, protocol_type="connect")) is InconsistentGroupProtocolError
    assert await refused(lambda: join(group, protocols={"sticky": b""})) is InconsistentGroupProtocolError
    assert await refused(lambda: group.sync(member.member_id, 9, {}, None)) is IllegalGenerationError
    assert await refused(lambda: group.check_commit("", -1, None)) is UnknownMemberIdError
    group.check_commit(member.member_id, 1, None)
    group.leave(member.member_id)
    group.check_commit("", -1, None)
    assert group.state == "Empty"
