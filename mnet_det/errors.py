"""The errors a user can cause. The text says what came, what was expected and what to do; it is printed alone."""


class MnetDetError(Exception):
    """Base of every error that a message can explain."""


class ConfigError(MnetDetError):
    """A setting that does not exist, has the wrong type, or contradicts another."""


class DataError(MnetDetError):
    """A data set, an annotation file or an image that cannot be used as it is."""


class CheckpointError(MnetDetError):
    """A model file that is missing, damaged, of another kind, or does not fit the data."""


class ImageError(DataError):
    """An image file that cannot be used.

    Attributes:
        kind: which fault it is, in the words of `mnet-det check`.
        reason: the message without the file's name.
    """

    def __init__(self, path: object, reason: str, kind: str) -> None:
        super().__init__(path, reason, kind)  # all of them, so that it comes whole out of another process
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        path, reason, _ = self.args
        return f"{path}: {reason}"


class SourceError(MnetDetError):
    """A camera, video, stream or folder that cannot be read, or a recording that cannot be written."""


class ExportError(MnetDetError):
    """An exported model that does not give the same detections as the one it came from."""


class DownloadError(MnetDetError):
    """A file that cannot be fetched, does not fit the disk, or is not the file that was expected."""


class MissingPackageError(MnetDetError):
    """A verb that needs packages which are not installed."""
