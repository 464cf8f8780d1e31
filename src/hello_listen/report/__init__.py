"""
C{hello-listen-report}: who connected, how often and when, and whether anything is missing.

A run is everything that one L{ConnectionLog} wrote; its C{service.instance.id} identifies it.

  - Its connections are counted by its closing line, C{Connection log closed}. Without that line,
    or for a period (C{--since}, C{--until}), they are counted from the records. A summary counts
    at its first timestamp.
  - Missing are the sequence numbers, from 1 to the run's last, without a record and outside every
    gap record, C{Connections not recorded}; for a period, those of the whole run. The last number
    is that of the closing line, or the highest in the files.
  - Unknown is the end of a run that was killed or whose process cannot be seen, and the beginning
    of a run whose first lines are not in the files, as after rotation: that is not missing.

A line that is read twice, as from a log and its copy, counts once. Records without an id, from
earlier releases, count only among the clients and in the bars.
"""

from hello_listen.report.command import main

__all__ = ["main"]
