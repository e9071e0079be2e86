"""A client of the Model Context Protocol by its Python SDK, at the address that it is given."""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main():
    async with streamablehttp_client(sys.argv[1]) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            for word in sys.argv[2].split():
                answer = await session.call_tool("note", {"text": word})
            print(answer.content[0].text)


asyncio.run(main())
