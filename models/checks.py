"""What settings must be, checked where they are made."""


def require(ok: bool, message: str) -> None:
    """Raises ValueError with the message unless `ok`."""
    if not ok:
        raise ValueError(message)
