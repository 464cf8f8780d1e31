"""Standard output, for tests of code that writes to descriptor 1."""

import os


class Output:
    """Standard output that a test replaces."""

    def __init__(self) -> None:
        self._before = os.dup(1)

    def become(self, file: int) -> None:
        """Make descriptor 1 a copy of a file's descriptor, and close the file."""
        os.dup2(file, 1)
        os.close(file)

    def restore(self) -> None:
        """Restore descriptor 1."""
        os.dup2(self._before, 1)
        os.close(self._before)
