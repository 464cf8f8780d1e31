"""Standard output, for tests of what writes to descriptor 1."""

import os


class Output:
    """Standard output, as a test makes it."""

    def __init__(self) -> None:
        self._before = os.dup(1)

    def become(self, file: int) -> None:
        """Make descriptor 1 a copy of a file, which is closed."""
        os.dup2(file, 1)
        os.close(file)

    def restore(self) -> None:
        """Undo it."""
        os.dup2(self._before, 1)
        os.close(self._before)
