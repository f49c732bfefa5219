"""Requests about the cluster and its topics."""

from typing import Any

from kafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.admin import (
    AlterConfigsRequest,
    AlterConfigsResponse,
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreateTopicsRequest,
    CreateTopicsResponse,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DescribeClusterRequest,
    DescribeClusterResponse,
    DescribeConfigsRequest,
    DescribeConfigsResponse,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from kafka.protocol.metadata import MetadataRequest, MetadataResponse

from streaming.broker.node import NODE_ID, Node
from streaming.broker.topics import DEFAULT_CONFIGS, BadTopic, Topic

_TOPIC_RESOURCE = 2
_SET_ON_TOPIC, _DEFAULT = 1, 5  # config sources
_SET, _DELETE = 0, 1  # operations of IncrementalAlterConfigs

_TopicMeta = MetadataResponse.MetadataResponseTopic
_PartitionMeta = _TopicMeta.MetadataResponsePartition
_Created = CreateTopicsResponse.CreatableTopicResult
_Deleted = DeleteTopicsResponse.DeletableTopicResult
_Described = DescribeConfigsResponse.DescribeConfigsResult
_Config = _Described.DescribeConfigsResourceResult


class AdminHandlers:
    """Answers the requests about topics of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topics = node.topics

    async def metadata(self, request: MetadataRequest, client_id: str) -> MetadataResponse:
        """Where everything is: here. Asking for a topic makes it, unless the client says no, as in Kafka."""
        if request.topics is None:
            names = [topic.name for topic in self._topics]
        else:
            names = [topic.name for topic in request.topics if topic.name is not None]
        may_create = request.allow_auto_topic_creation is not False
        return MetadataResponse(
            brokers=[
                MetadataResponse.MetadataResponseBroker(
                    node_id=NODE_ID, host=self._node.host, port=self._node.port, rack=None
                )
            ],
            cluster_id=self._topics.cluster_id,
            controller_id=NODE_ID,
            topics=[self._topic_metadata(name, may_create) for name in names],
        )

    def _topic_metadata(self, name: str, may_create: bool) -> Any:
        topic, code = self._topics.get(name), 0
        if topic is None:
            code = UnknownTopicOrPartitionError.errno
            if may_create:
                try:
                    topic, code = self._topics.create(name, 1, {}), 0
                except BadTopic:
                    code = InvalidTopicError.errno
        parts = [
            _PartitionMeta(
                error_code=0,
                partition_index=i,
                leader_id=NODE_ID,
                leader_epoch=0,
                replica_nodes=[NODE_ID],
                isr_nodes=[NODE_ID],
                offline_replicas=[],
            )
            for i in range(len(topic.logs) if topic is not None else 0)
        ]
        answer = _TopicMeta(
            error_code=code,
            name=name,
            is_internal=False,
            partitions=parts,
        )
        if topic is not None:
            answer.topic_id = topic.id
        return answer

    async def describe_cluster(
        self, request: DescribeClusterRequest, client_id: str
    ) -> DescribeClusterResponse:
        """The one node."""
        broker = DescribeClusterResponse.DescribeClusterBroker(
            broker_id=NODE_ID, host=self._node.host, port=self._node.port, rack=None
        )
        return DescribeClusterResponse(
            error_code=0,
            error_message=None,
            cluster_id=self._topics.cluster_id,
            controller_id=NODE_ID,
            brokers=[broker],
        )

    async def create_topics(self, request: CreateTopicsRequest, client_id: str) -> CreateTopicsResponse:
        """Makes topics."""
        answers = []
        for wanted in request.topics:
            num_partitions = len(wanted.assignments) or max(1, wanted.num_partitions)
            code, message = 0, None
            if self._topics.get(wanted.name) is not None:
                code, message = TopicAlreadyExistsError.errno, f"topic {wanted.name} already exists"
            elif wanted.replication_factor > 1:
                code = InvalidReplicationFactorError.errno
                message = "this broker is one node: the replication factor is 1"
            elif not request.validate_only:
                try:
                    configs = {config.name: config.value or "" for config in wanted.configs}
                    self._topics.create(wanted.name, num_partitions, configs)
                except BadTopic as error:
                    code, message = InvalidTopicError.errno, str(error)
            answer = _Created(
                name=wanted.name,
                error_code=code,
                error_message=message,
                num_partitions=num_partitions if not code else -1,
                replication_factor=1 if not code else -1,
                configs=[],
            )
            topic = self._topics.get(wanted.name)
            if topic is not None:
                answer.topic_id = topic.id
            answers.append(answer)
        return CreateTopicsResponse(topics=answers)

    async def delete_topics(self, request: DeleteTopicsRequest, client_id: str) -> DeleteTopicsResponse:
        """Removes topics, their records and what groups committed for them."""
        answers = []
        for name in request.topic_names:
            topic, code = self._topics.get(name), 0
            if topic is None:
                code = UnknownTopicOrPartitionError.errno
            else:
                self._topics.delete(topic)
                self._node.offsets.forget_topic(name)
            answers.append(_Deleted(name=name, error_code=code, error_message=None))
        return DeleteTopicsResponse(responses=answers)

    async def create_partitions(
        self, request: CreatePartitionsRequest, client_id: str
    ) -> CreatePartitionsResponse:
        """Adds partitions to topics."""
        answers = []
        for wanted in request.topics:
            topic = self._topics.get(wanted.name)
            code, message = 0, None
            if topic is None:
                code = UnknownTopicOrPartitionError.errno
            elif not request.validate_only:
                try:
                    self._topics.grow(topic, wanted.count)
                except BadTopic as error:
                    code, message = InvalidPartitionsError.errno, str(error)
            answers.append(
                CreatePartitionsResponse.CreatePartitionsTopicResult(
                    name=wanted.name, error_code=code, error_message=message
                )
            )
        return CreatePartitionsResponse(results=answers)

    async def describe_configs(
        self, request: DescribeConfigsRequest, client_id: str
    ) -> DescribeConfigsResponse:
        """The settings of each topic, defaults included; nothing for anything but a topic."""
        answers = []
        for resource in request.resources:
            topic = self._topics.get(resource.resource_name)
            is_topic = resource.resource_type == _TOPIC_RESOURCE
            configs = _configs(topic, resource.configuration_keys) if is_topic and topic is not None else []
            answers.append(
                _Described(
                    error_code=UnknownTopicOrPartitionError.errno if is_topic and topic is None else 0,
                    error_message=None,
                    resource_type=resource.resource_type,
                    resource_name=resource.resource_name,
                    configs=configs,
                )
            )
        return DescribeConfigsResponse(results=answers)

    async def alter_configs(self, request: AlterConfigsRequest, client_id: str) -> AlterConfigsResponse:
        """Replaces all settings of topics."""
        answers = []
        for resource in request.resources:
            configs = {config.name: config.value or "" for config in resource.configs}
            code, message = self._configure(
                resource.resource_type, resource.resource_name, configs, request.validate_only
            )
            answers.append(_changed(AlterConfigsResponse, resource, code, message))
        return AlterConfigsResponse(responses=answers)

    async def change_configs(
        self, request: IncrementalAlterConfigsRequest, client_id: str
    ) -> IncrementalAlterConfigsResponse:
        """Sets or removes single settings of topics."""
        answers = []
        for resource in request.resources:
            topic = self._topics.get(resource.resource_name)
            configs = dict(topic.configs) if topic is not None else {}
            code, message = 0, None
            for config in resource.configs:
                if config.config_operation == _SET:
                    configs[config.name] = config.value or ""
                elif config.config_operation == _DELETE:
                    configs.pop(config.name, None)
                else:
                    code, message = InvalidRequestError.errno, "settings are set or deleted, not appended to"
            if not code:
                code, message = self._configure(
                    resource.resource_type, resource.resource_name, configs, request.validate_only
                )
            answers.append(_changed(IncrementalAlterConfigsResponse, resource, code, message))
        return IncrementalAlterConfigsResponse(responses=answers)

    def _configure(
        self, resource_type: int, name: str, configs: dict[str, str], validate_only: bool
    ) -> tuple[int, str | None]:
        """(error code, message) of setting a topic's settings."""
        topic = self._topics.get(name)
        if resource_type != _TOPIC_RESOURCE:
            return InvalidRequestError.errno, "only topics have settings that can be changed"
        if topic is None:
            return UnknownTopicOrPartitionError.errno, None
        try:
            if not validate_only:
                self._topics.configure(topic, configs)
        except BadTopic as error:
            return InvalidConfigurationError.errno, str(error)
        return 0, None


def _configs(topic: Topic, wanted: list[str] | None) -> list[Any]:
    return [
        _Config(
            name=name,
            value=value,
            read_only=False,
            config_source=_SET_ON_TOPIC if name in topic.configs else _DEFAULT,
            is_default=name not in topic.configs,
            is_sensitive=False,
            synonyms=[],
            config_type=0,
            documentation=None,
        )
        for name, value in (DEFAULT_CONFIGS | topic.configs).items()
        if wanted is None or name in wanted
    ]


def _changed(response: Any, resource: Any, code: int, message: str | None) -> Any:
    """What came of changing the settings of `resource`, in a `response` of either kind."""
    return response.AlterConfigsResourceResponse(
        error_code=code,
        error_message=message,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
    )
