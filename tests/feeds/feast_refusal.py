"""What the process with Feast answers in place of a result."""


class Refused(Exception):
    """The words of a ``SourceError``."""
