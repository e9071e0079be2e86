"""A server of the Model Context Protocol by its Python SDK, whose sessions are in its memory: a tool
that remembers what its client has said."""

import os

from mcp.server.fastmcp import Context, FastMCP
from starlette.responses import PlainTextResponse

server = FastMCP("notes", host="127.0.0.1", port=int(os.environ["PORT"]), log_level="ERROR")
said = {}


@server.custom_route("/ready", methods=["GET"])
async def ready(request):
    return PlainTextResponse("ready")


@server.tool()
async def note(text: str, context: Context) -> str:
    """Remembers it, and answers with all that came in this session."""
    remembered = said.setdefault(id(context.session), [])
    remembered.append(text)
    return " ".join(remembered)


server.run(transport="streamable-http")
