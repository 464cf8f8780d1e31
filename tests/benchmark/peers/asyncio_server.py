"""What asyncio's documentation leads to: a server that logs each connection and hangs up."""

import asyncio
import logging
import sys


async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Log who connected, and hang up."""
    peer, host = map(writer.get_extra_info, ("peername", "sockname"))
    logging.info("Connection established! %s:%d -> %s:%d", *peer, *host)
    writer.close()


async def main() -> None:
    """Listen on the port that the command line names."""
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
asyncio.run(main())
