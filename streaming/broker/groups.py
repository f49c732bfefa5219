"""Consumer groups: who is in one, who leads it, and what each member reads.

Source: Kafka's classic group protocol (https://cwiki.apache.org/confluence/display/KAFKA/Kafka+Client-side+
Assignment+Proposal; KIP-394 for member ids, KIP-345 for static members).
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kafka.errors import (
    FencedInstanceIdError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    KafkaError,
    MemberIdRequiredError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

_MIN_SESSION_S, _MAX_SESSION_S = 0.5, 1_800.0


class GroupError(Exception):
    """A call that the group refuses; `code` is Kafka's number for why, `member_id` the id to use."""

    def __init__(self, kind: type[KafkaError], member_id: str = "") -> None:
        super().__init__(kind.__name__)
        self.code: int = kind.errno
        self.member_id = member_id


class Joined(NamedTuple):
    """What a member learns of a new generation; `members` (id, instance, metadata) is for the leader."""

    generation: int
    protocol_type: str
    protocol: str
    leader: str
    member_id: str
    members: list[tuple[str, str | None, bytes]]


@dataclass
class Member:
    """One consumer of a group; a static one has an `instance` id that its next start has too."""

    id: str
    instance: str | None
    client_id: str
    session_s: float
    rebalance_s: float
    protocols: dict[str, bytes]
    last_seen_s: float = field(default_factory=time.monotonic)
    assignment: bytes = b""
    joining: asyncio.Future[Joined] | None = None
    syncing: asyncio.Future[bytes] | None = None


class Group:
    """One group. Its calls come from one event loop; `join` and `sync` wait for the other members."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "Empty"  # PreparingRebalance, CompletingRebalance, Stable
        self.protocol_type = ""
        self.protocol = ""
        self.generation = 0
        self.leader = ""
        self.members: dict[str, Member] = {}
        self._promised: set[str] = set()
        self._deadline: asyncio.Handle | None = None

    async def join(
        self,
        member_id: str,
        *,
        client_id: str,
        instance: str | None,
        protocol_type: str,
        protocols: Mapping[str, bytes],
        session_s: float,
        rebalance_s: float,
        must_know_id: bool,
    ) -> Joined:
        """Waits until the group's next generation is made; raises GroupError."""
        if not protocols or (
            self.members and (protocol_type != self.protocol_type or not self._shared(protocols))
        ):
            raise GroupError(InconsistentGroupProtocolError)
        old = self._of_instance(instance) if not member_id else None
        if old is not None:
            return await self._rejoin_static(old, client_id, protocols, session_s, rebalance_s)
        if not member_id:
            member_id = f"{instance or client_id}-{uuid.uuid4()}"
            if must_know_id and instance is None:
                self._promised.add(member_id)
                raise GroupError(MemberIdRequiredError, member_id)
        elif member_id not in self.members and member_id not in self._promised:
            raise self._unknown(instance)
        self._promised.discard(member_id)
        member = self.members.get(member_id)
        if member is None:
            member = self.members[member_id] = Member(member_id, instance, client_id, 0, 0, {})
            self.protocol_type = protocol_type
        elif self.state == "Stable" and member.protocols == protocols and member_id != self.leader:
            member.last_seen_s = time.monotonic()
            return self._joined(member)
        return await self._join(member, protocols, session_s, rebalance_s)

    async def _join(
        self, member: Member, protocols: Mapping[str, bytes], session_s: float, rebalance_s: float
    ) -> Joined:
        member.protocols = dict(protocols)
        member.session_s = min(max(session_s, _MIN_SESSION_S), _MAX_SESSION_S)
        member.rebalance_s = min(max(rebalance_s, _MIN_SESSION_S), _MAX_SESSION_S)
        member.last_seen_s = time.monotonic()
        member.joining = asyncio.get_running_loop().create_future()
        waiting = member.joining
        self._prepare()
        return await waiting

    async def _rejoin_static(
        self,
        old: Member,
        client_id: str,
        protocols: Mapping[str, bytes],
        session_s: float,
        rebalance_s: float,
    ) -> Joined:
        """A static member that started anew takes its own former place, without a rebalance if it can."""
        self._take_out(old, FencedInstanceIdError)
        member = replace(old, id=f"{old.instance}-{uuid.uuid4()}", client_id=client_id)
        member.joining = member.syncing = None
        self.members[member.id] = member
        was_leader = self.leader == old.id
        if was_leader:
            self.leader = member.id
        if self.state != "Stable" or member.protocols != protocols:
            return await self._join(member, protocols, session_s, rebalance_s)
        member.last_seen_s = time.monotonic()
        joined = self._joined(member)
        # it must not assign again: it hears of a leader that is not itself (KIP-345)
        return joined._replace(leader=old.id, members=[]) if was_leader else joined

    def _of_instance(self, instance: str | None) -> Member | None:
        if instance is None:
            return None
        return next((m for m in self.members.values() if m.instance == instance), None)

    def _unknown(self, instance: str | None) -> GroupError:
        """Why a member id is refused that the group does not have."""
        known = self._of_instance(instance)
        return GroupError(UnknownMemberIdError if known is None else FencedInstanceIdError)

    def _take_out(self, member: Member, why: type[KafkaError]) -> None:
        self.members.pop(member.id, None)
        for waiting in (member.joining, member.syncing):
            if waiting is not None and not waiting.done():
                waiting.set_exception(GroupError(why))

    def _shared(self, protocols: Mapping[str, bytes]) -> bool:
        return any(all(name in m.protocols for m in self.members.values()) for name in protocols)

    def _prepare(self) -> None:
        """All members have to join again; completes once they have, or when the slowest has had its time."""
        for member in self.members.values():
            if member.syncing is not None and not member.syncing.done():
                member.syncing.set_exception(GroupError(RebalanceInProgressError))
            member.syncing = None
        self.state = "PreparingRebalance"
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if all(m.joining is not None for m in self.members.values()):
            # at once, but after the joins that arrive together
            self._deadline = asyncio.get_running_loop().call_soon(self._complete)
        else:
            patience_s = max(m.rebalance_s for m in self.members.values())
            self._deadline = asyncio.get_running_loop().call_later(patience_s, self._complete)

    def _complete(self) -> None:
        self._deadline = None
        for member_id in [m.id for m in self.members.values() if m.joining is None]:
            del self.members[member_id]
        self.generation += 1
        if not self.members:
            self.state = "Empty"
            return
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        self.protocol = next(
            name
            for name in self.members[self.leader].protocols
            if all(name in m.protocols for m in self.members.values())
        )
        self.state = "CompletingRebalance"
        for member in self.members.values():
            joining, member.joining, member.assignment = member.joining, None, b""
            member.last_seen_s = time.monotonic()
            if joining is not None and not joining.done():
                joining.set_result(self._joined(member))

    def _joined(self, member: Member) -> Joined:
        everyone = [(m.id, m.instance, m.protocols[self.protocol]) for m in self.members.values()]
        return Joined(
            self.generation,
            self.protocol_type,
            self.protocol,
            self.leader,
            member.id,
            everyone if member.id == self.leader else [],
        )

    async def sync(
        self, member_id: str, generation: int, assignments: Mapping[str, bytes], instance: str | None
    ) -> bytes:
        """A member's assignment, once the leader has given it; raises GroupError."""
        member = self.check(member_id, generation, instance)
        if self.state == "PreparingRebalance":
            raise GroupError(RebalanceInProgressError)
        if self.state == "CompletingRebalance":
            if member_id != self.leader:
                member.syncing = asyncio.get_running_loop().create_future()
                return await member.syncing
            self.state = "Stable"
            for one in self.members.values():
                one.assignment = assignments.get(one.id, b"")
                if one.syncing is not None and not one.syncing.done():
                    one.syncing.set_result(one.assignment)
                one.syncing = None
        return member.assignment

    def check(self, member_id: str, generation: int, instance: str | None) -> Member:
        """The member that a call comes from, seen now; raises GroupError if it is none of this generation."""
        member = self.members.get(member_id)
        if member is None:
            raise self._unknown(instance)
        if generation != self.generation:
            raise GroupError(IllegalGenerationError)
        member.last_seen_s = time.monotonic()
        return member

    def heartbeat(self, member_id: str, generation: int, instance: str | None) -> None:
        """Says that a member is alive; raises GroupError, which also tells it to join again."""
        self.check(member_id, generation, instance)
        if self.state == "PreparingRebalance":
            raise GroupError(RebalanceInProgressError)

    def check_commit(self, member_id: str, generation: int, instance: str | None) -> None:
        """Raises GroupError unless who commits is a member, or the group has none and needs none."""
        if generation < 0 and not member_id and not self.members:
            return
        self.check(member_id, generation, instance)

    def leave(self, member_id: str, instance: str | None = None) -> None:
        """Takes a member out, by its id or its instance's; raises GroupError if it is none."""
        self._promised.discard(member_id)
        member = self.members.get(member_id) if member_id else self._of_instance(instance)
        if member is None:
            raise GroupError(UnknownMemberIdError)
        self._take_out(member, UnknownMemberIdError)
        if self.members:
            self._prepare()
        else:
            self._empty()

    def _empty(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.state, self.leader = "Empty", ""
        self.generation += 1

    def expire(self) -> None:
        """Takes out members that were not heard of for their session's length."""
        now_s = time.monotonic()
        for member in list(self.members.values()):
            if member.joining is None and now_s - member.last_seen_s > member.session_s:
                self.leave(member.id)
