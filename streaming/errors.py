"""What can go wrong in `streaming`: one base class, one class per thing a caller can act on."""


class StreamingError(Exception):
    """Base of every error that `streaming` raises by itself."""


class MalformedEvent(StreamingError):
    """A record that cannot be read or fails validation; it goes to the dead-letter topic, never retried.

    `reason` is one word for counters and headers: not_protobuf, not_json, invalid or too_large
    (consumers further on add their own, such as unknown_item); `text` is for people.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text


class BrokerUnavailable(StreamingError):
    """The broker did not answer, or did not confirm a record, in time; trying again later may work."""


class DatasetError(StreamingError):
    """A data folder lacks something or holds what cannot be read; the text says what to do."""
