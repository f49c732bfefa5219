"""Requests about consumer groups."""

from kafka.errors import CoordinatorNotAvailableError, KafkaStorageError
from kafka.protocol.admin import (
    DescribeGroupsRequest,
    DescribeGroupsResponse,
    ListGroupsRequest,
    ListGroupsResponse,
)
from kafka.protocol.consumer import (
    HeartbeatRequest,
    HeartbeatResponse,
    JoinGroupRequest,
    JoinGroupResponse,
    LeaveGroupRequest,
    LeaveGroupResponse,
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetFetchRequest,
    OffsetFetchResponse,
    SyncGroupRequest,
    SyncGroupResponse,
)
from kafka.protocol.metadata import FindCoordinatorRequest, FindCoordinatorResponse

from streaming.broker.groups import Group, GroupError
from streaming.broker.node import NODE_ID, Node
from streaming.broker.offsets import Committed

_GROUP = 0
_MEMBER_IDS_ARE_GIVEN_FROM = 4  # the version of JoinGroup
_MANY_GROUPS_FROM = 8  # the version of OffsetFetch

_OneFetched = OffsetFetchResponse.OffsetFetchResponseTopic
_ManyFetched = OffsetFetchResponse.OffsetFetchResponseGroup
_Described = DescribeGroupsResponse.DescribedGroup


class MembershipHandlers:
    """Answers the requests about groups of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _group(self, name: str) -> Group:
        return self._node.groups.setdefault(name, Group(name))

    async def find_coordinator(
        self, request: FindCoordinatorRequest, client_id: str
    ) -> FindCoordinatorResponse:
        """This node, for groups; nobody for transactions."""
        is_group = (request.key_type or 0) == _GROUP
        code = 0 if is_group else CoordinatorNotAvailableError.errno
        message = None if is_group else "this broker has no transactions"
        keys = request.coordinator_keys or []
        return FindCoordinatorResponse(
            error_code=code,
            error_message=message,
            node_id=NODE_ID,
            host=self._node.host,
            port=self._node.port,
            coordinators=[
                FindCoordinatorResponse.Coordinator(
                    key=key,
                    node_id=NODE_ID,
                    host=self._node.host,
                    port=self._node.port,
                    error_code=code,
                    error_message=message,
                )
                for key in keys
            ],
        )

    async def join(self, request: JoinGroupRequest, client_id: str) -> JoinGroupResponse:
        """Waits for the group's next generation."""
        try:
            joined = await self._group(request.group_id).join(
                request.member_id,
                client_id=client_id,
                instance=request.group_instance_id or None,
                protocol_type=request.protocol_type,
                protocols={p.name: bytes(p.metadata) for p in request.protocols},
                session_s=request.session_timeout_ms / 1000,
                rebalance_s=(request.rebalance_timeout_ms or request.session_timeout_ms) / 1000,
                must_know_id=(request.version or 0) >= _MEMBER_IDS_ARE_GIVEN_FROM,
            )
        except GroupError as error:
            return JoinGroupResponse(
                error_code=error.code,
                generation_id=-1,
                protocol_type=None,
                protocol_name="",
                leader="",
                member_id=error.member_id or request.member_id,
                members=[],
            )
        members = [
            JoinGroupResponse.JoinGroupResponseMember(
                member_id=id_, group_instance_id=instance, metadata=metadata
            )
            for id_, instance, metadata in joined.members
        ]
        return JoinGroupResponse(
            error_code=0,
            generation_id=joined.generation,
            protocol_type=joined.protocol_type,
            protocol_name=joined.protocol,
            leader=joined.leader,
            skip_assignment=False,
            member_id=joined.member_id,
            members=members,
        )

    async def sync(self, request: SyncGroupRequest, client_id: str) -> SyncGroupResponse:
        """Waits for the leader's assignment."""
        group = self._group(request.group_id)
        assignments = {one.member_id: bytes(one.assignment) for one in request.assignments}
        try:
            assignment = await group.sync(
                request.member_id, request.generation_id, assignments, request.group_instance_id
            )
        except GroupError as error:
            return SyncGroupResponse(
                error_code=error.code, protocol_type=None, protocol_name=None, assignment=b""
            )
        return SyncGroupResponse(
            error_code=0,
            protocol_type=group.protocol_type,
            protocol_name=group.protocol,
            assignment=assignment,
        )

    async def heartbeat(self, request: HeartbeatRequest, client_id: str) -> HeartbeatResponse:
        """Says whether the member's generation is still the group's."""
        try:
            self._group(request.group_id).heartbeat(
                request.member_id, request.generation_id, request.group_instance_id
            )
        except GroupError as error:
            return HeartbeatResponse(error_code=error.code)
        return HeartbeatResponse(error_code=0)

    async def leave(self, request: LeaveGroupRequest, client_id: str) -> LeaveGroupResponse:
        """Takes members out."""
        group, codes = self._group(request.group_id), []
        ids = [(one.member_id, one.group_instance_id) for one in request.members or []]
        ids = ids or [(request.member_id or "", None)]
        for member_id, instance in ids:
            try:
                group.leave(member_id, instance)
                codes.append(0)
            except GroupError as error:
                codes.append(error.code)
        members = [
            LeaveGroupResponse.MemberResponse(member_id=id_, group_instance_id=instance, error_code=code)
            for (id_, instance), code in zip(ids, codes, strict=True)
        ]
        return LeaveGroupResponse(error_code=0 if request.members else codes[0], members=members)

    async def commit(self, request: OffsetCommitRequest, client_id: str) -> OffsetCommitResponse:
        """Keeps what a member has read."""
        commits = {
            (topic.name, part.partition_index): Committed(part.committed_offset, part.committed_metadata)
            for topic in request.topics
            for part in topic.partitions
        }
        code = 0
        try:
            self._group(request.group_id).check_commit(
                request.member_id, request.generation_id_or_member_epoch, request.group_instance_id
            )
            known = {
                place: one for place, one in commits.items() if self._node.topics.log(*place) is not None
            }
            self._node.offsets.commit(request.group_id, known)
        except GroupError as error:
            code = error.code
        except OSError:
            code = KafkaStorageError.errno
        one = OffsetCommitResponse.OffsetCommitResponseTopic
        return OffsetCommitResponse(
            topics=[
                one(
                    name=topic.name,
                    partitions=[
                        one.OffsetCommitResponsePartition(
                            partition_index=part.partition_index, error_code=code
                        )
                        for part in topic.partitions
                    ],
                )
                for topic in request.topics
            ]
        )

    async def committed(self, request: OffsetFetchRequest, client_id: str) -> OffsetFetchResponse:
        """What groups committed; -1 where they did not."""
        if (request.version or 0) < _MANY_GROUPS_FROM:
            wanted = (
                None
                if request.topics is None
                else [(topic.name, i) for topic in request.topics for i in topic.partition_indexes]
            )
            topics = [
                _OneFetched(
                    name=name,
                    partitions=[_OneFetched.OffsetFetchResponsePartition(**fields) for fields in partitions],
                )
                for name, partitions in self._committed(request.group_id, wanted).items()
            ]
            return OffsetFetchResponse(topics=topics, error_code=0)
        groups = []
        for group in request.groups:
            wanted = (
                None
                if group.topics is None
                else [(topic.name, i) for topic in group.topics for i in topic.partition_indexes]
            )
            many = [
                _ManyFetched.OffsetFetchResponseTopics(
                    name=name,
                    partitions=[
                        _ManyFetched.OffsetFetchResponseTopics.OffsetFetchResponsePartitions(**fields)
                        for fields in partitions
                    ],
                )
                for name, partitions in self._committed(group.group_id, wanted).items()
            ]
            groups.append(_ManyFetched(group_id=group.group_id, topics=many, error_code=0))
        return OffsetFetchResponse(groups=groups)

    def _committed(
        self, group: str, wanted: list[tuple[str, int]] | None
    ) -> dict[str, list[dict[str, object]]]:
        """By topic, the fields of each partition's answer."""
        known = self._node.offsets.of(group)
        answer: dict[str, list[dict[str, object]]] = {}
        for topic, partition in known if wanted is None else wanted:
            one = known.get((topic, partition), Committed(-1, ""))
            answer.setdefault(topic, []).append(
                {
                    "partition_index": partition,
                    "committed_offset": one.offset,
                    "committed_leader_epoch": -1,
                    "metadata": one.metadata,
                    "error_code": 0,
                }
            )
        return answer

    async def list_groups(self, request: ListGroupsRequest, client_id: str) -> ListGroupsResponse:
        """All groups that have members or have committed something."""
        names = sorted({*self._node.offsets.groups(), *self._node.groups})
        groups = [
            ListGroupsResponse.ListedGroup(
                group_id=name,
                protocol_type=self._group(name).protocol_type,
                group_state=self._group(name).state,
                group_type="classic",
            )
            for name in names
        ]
        return ListGroupsResponse(error_code=0, groups=groups)

    async def describe_groups(self, request: DescribeGroupsRequest, client_id: str) -> DescribeGroupsResponse:
        """Members and assignments."""
        answers = []
        for name in request.groups:
            group = self._node.groups.get(name) or Group(name)
            members = [
                _Described.DescribedGroupMember(
                    member_id=member.id,
                    group_instance_id=member.instance,
                    client_id=member.client_id,
                    client_host="/127.0.0.1",
                    member_metadata=member.protocols.get(group.protocol, b""),
                    member_assignment=member.assignment,
                )
                for member in group.members.values()
            ]
            answers.append(
                _Described(
                    error_code=0,
                    group_id=name,
                    group_state=group.state if members or self._node.offsets.of(name) else "Dead",
                    protocol_type=group.protocol_type,
                    protocol_data=group.protocol,
                    members=members,
                )
            )
        return DescribeGroupsResponse(groups=answers)
