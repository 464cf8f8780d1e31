"""
Feed the reader of PROXY headers with mutated headers in random pieces: C{python fuzz.py [INPUTS]}.

Each input has to be one record, of one line, with the connection dropped and nothing raised.
"""

from __future__ import annotations

import random
import sys

from headers import CORPUS, PROXY, Server


def mutated(chance: random.Random) -> bytes:
    """Return a header of the corpus with some of its bytes changed, cut out, doubled or added."""
    data = bytearray(chance.choice(CORPUS))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 2, 4, 12, 200))
        change = chance.randrange(4)
        if change == 0:
            data[at : at + length] = chance.randbytes(length)
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = chance.choice(CORPUS)[:length]
    return bytes(data)


def main(inputs: int) -> None:
    """Try mutated inputs, and print the results."""
    chance, server = random.Random(inputs), Server()
    outcomes: dict[str, int] = {}
    for count in range(1, inputs + 1):
        data = mutated(chance)
        middle = chance.randrange(len(data) + 1)
        connection = server.receive(data[:middle], data[middle:])
        assert str(connection).isprintable(), data
        server.seen.clear()
        outcome = connection.error or ("unnamed" if connection.client == PROXY else "named")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if count % 100_000 == 0 or count == inputs:
            print(f"{count} inputs: {dict(sorted(outcomes.items()))}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
