"""What can go wrong in `models`: one base class, one class per thing a caller can act on."""


class ModelError(Exception):
    """Base of every error that `models` raises by itself."""


class IncompatibleCheckpoint(ModelError):
    """A checkpoint or release cannot be read: `reason` is one word for the counter, the text is for people.

    Reasons: missing_file, checksum, size, unsafe_name, shape, non_finite, format, codebook.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NonFiniteLoss(ModelError):
    """A training step produced NaN or infinity; the step was dropped and the weights are unchanged."""


class NothingToTest(ModelError):
    """A protocol of evaluation finds no event to test with."""


class PrefixFull(ModelError):
    """Every disambiguation code under every near prefix is taken: the codebook is too small."""
