"""
C{hello-listen-report}: who connected, how often and when, and whether anything is missing.

A run is what one L{ConnectionLog} wrote, known by its C{service.instance.id}.

  - Its connections are what C{Connection log closed} says. Without that line, and for a period
    (C{--since}, C{--until}), they are what the records say. A summary counts where it begins.
  - Missing are the numbers from 1 to the last that no record has and no C{Connections not
    recorded} tells of; for a period, those of the whole run. The last is what C{Connection log
    closed} says, or the highest that was found.
  - Unknown is the end of a run that was killed, or whose process cannot be seen, and the beginning
    of a run whose first lines are not in the files: rotated away is not missing, and not there.

A line that is read twice, as from a log and its copy, counts once. Records without an id, of
earlier releases, count among the clients and in the bars only.
"""

from hello_listen.report.command import main

__all__ = ["main"]
