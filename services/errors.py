"""What can go wrong in `services`; `services/rpc/statuses.py` maps every class to a gRPC status."""


class ServiceError(Exception):
    """Base of every error that `services` raises by itself."""


class InvalidSettings(ServiceError):
    """A `HEADRACE_*` variable is unknown or has a wrong value."""


class InvalidRequest(ServiceError):
    """A caller's mistake: one (field, what is wrong) pair for each violation."""

    def __init__(self, *violations: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {text}" for field, text in violations))
        self.violations = violations


class NotFound(ServiceError):
    """The named release, item or user does not exist."""


class NotReady(ServiceError):
    """No release is loaded yet."""


class WrongRelease(ServiceError):
    """The release that the caller insists on is not the live one here."""


class BackendUnavailable(ServiceError):
    """A service behind this one does not answer."""


class DeadlineExpired(ServiceError):
    """The caller's deadline leaves no time for the next step."""


class Overloaded(ServiceError):
    """More requests than this service takes; worth trying again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
