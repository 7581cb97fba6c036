"""What this room raises besides ValueError: one exception for each thing a caller can act on."""


class DataNotFoundError(FileNotFoundError):
    """A configured data file is not there; the message says which and how to get it."""
