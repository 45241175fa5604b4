"""What a refresher is told, one command a line on a pipe."""

BUILD = b"build\n"
# The same, and once the table may have lost as many items as it likes.
FORCE = b"force\n"
STOP = b"stop\n"
MAKE = b"make"
KEEP = b"keep"
# The maker of companions that a refresher begins with.
FIRST = "first"


def make_command(label: str, what: str) -> bytes:
    """Companions of one more maker from now on, beginning with what is published.

    :param label: a word that :func:`keep_command` and the report name it by
    :param what: one line that the refresher's ``open_maker`` understands
    """
    return MAKE + f" {label} {what}\n".encode()


def keep_command(label: str) -> bytes:
    """Companions of that maker only from now on."""
    return KEEP + f" {label}\n".encode()
