"""A counter, for servers of either of Python's interfaces."""

counted = 0


async def asgi(scope, receive, send):
    global counted
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    counted += scope["method"] == "POST"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(counted).encode()})


def wsgi(environ, start_response):
    global counted
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    counted += environ["REQUEST_METHOD"] == "POST"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(counted).encode()]
