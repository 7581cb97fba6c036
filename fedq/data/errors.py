"""The exceptions of this package besides ValueError: one for each problem that a caller can act on."""


class DataNotFoundError(FileNotFoundError):
    """A configured data file does not exist; the message names the file and how to get it."""
