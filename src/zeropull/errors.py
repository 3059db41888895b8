"""Every kind of error that a caller acts on, as one tree.

A message names the thing, the value and the rule, and the remedy if there is one. Facts stay as
attributes. Secrets never appear in either. Translation to AWS error codes happens in
`zeropull.awsprotocol`, from gRPC statuses in `zeropull.containerd`, in one table each.

    ZeropullError
    ├── InvalidInput            the user's input is wrong: fix it and try again
    │   └── ConfigurationError  a setting, flag or file
    ├── NotFound
    ├── AlreadyExists
    ├── Conflict                wrong state for the operation: wait or do something else first
    ├── NoCapacity              instances, accelerators or disk cannot be had now
    ├── DiskFull                a write or a budget check found no room
    ├── IntegrityError          bytes are not what their digest says: drop them, fetch again
    ├── Unavailable             the other side does not answer: retry with backoff
    ├── AccessDenied            credentials missing, wrong or insufficient
    ├── ImageError              this image can never run here (format, absurd layer)
    │   ├── PlatformError       it is built for another platform: build it for this one
    │   └── UnreadableImage     our own reading does not know its format: containerd may
    ├── ArtifactError           this model artifact can never be used (missing, truncated, unsafe)
    └── ContainerError          the container exited, or never became healthy
"""

from __future__ import annotations


class ZeropullError(Exception):
    """Root of the tree; `reason` is the sentence shown to people."""

    @property
    def reason(self) -> str:
        return str(self)


class InvalidInput(ZeropullError):
    """The input breaks a rule that the message names."""


class ConfigurationError(InvalidInput):
    """A setting, a flag or a configuration file is wrong."""


class NotFound(ZeropullError):
    """The named thing does not exist."""


class AlreadyExists(ZeropullError):
    """The name is taken."""


class Conflict(ZeropullError):
    """The thing is in a state that forbids the operation."""


class NoCapacity(ZeropullError):
    """Instances, accelerators or addresses are used up; the message has the arithmetic."""


class DiskFull(ZeropullError):
    """No room on disk; the message says how much was needed and how much there was."""


class IntegrityError(ZeropullError):
    """Bytes do not match the digest, size or check that they came with."""


class Unavailable(ZeropullError):
    """The other side cannot be reached or answers with a temporary failure.

    `retry_after_s`: it answered, and is worth asking again after this many seconds (0.0: soon);
    None: nobody knows.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AccessDenied(ZeropullError):
    """Credentials are missing, wrong or insufficient for this."""


class ImageError(ZeropullError):
    """The image itself can not be used here, now or later."""


class PlatformError(ImageError):
    """The image is built for another operating system or processor."""


class UnreadableImage(ImageError):
    """Our own reading does not know the image's format; containerd's own pull may.

    `manifest_digest` is what it can be pulled by, "" while that is not known.
    """

    def __init__(self, message: str, *, manifest_digest: str = "") -> None:
        super().__init__(message)
        self.manifest_digest = manifest_digest


class ArtifactError(ZeropullError):
    """The model artifact itself can not be used."""


class ContainerError(ZeropullError):
    """The container exited or did not become healthy in time."""
