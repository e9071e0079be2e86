"""Servers that know their clients by ids of their own, kept in memory: one that gives them in a field,
as servers of the Model Context Protocol do, one whose clients make them up, as those of queues do, one
that gives them in JSON for a path, as Gradio does for curl, and Socket.IO with polling. The first argument
says which."""

import json
import os
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = int(os.environ["PORT"])


class Plain(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions = {}

    def log_message(self, *args):
        pass

    def answer(self, status, text="", **fields):
        body = text.encode()
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/ready":
            return self.answer(200)
        getattr(self, sys.argv[1])(sent)

    def fields(self, sent):
        """Every request but the first has to bring the id, or it is refused."""
        id = self.headers.get("Mcp-Session-Id")
        if id is None and sent == "initialize":
            id = str(uuid.uuid4())
            self.sessions[id] = []
        if id not in self.sessions:
            return self.answer(404, "no such session")
        self.sessions[id].append(sent)
        self.answer(200, " ".join(self.sessions[id]), Mcp_Session_Id=id)

    def queue(self, sent):
        """A client joins under an id that it has made up, and fetches what became of it."""
        url = urlsplit(self.path)
        id = parse_qs(url.query)["session_hash"][0]
        if url.path == "/join":
            self.sessions.setdefault(id, []).append(sent)
            return self.answer(200, "{}", Content_Type="application/json")
        if id not in self.sessions:
            return self.answer(404, "no such session")
        self.answer(200, " ".join(self.sessions[id]))

    def calls(self, sent):
        """A client leaves a call, and fetches its result by the id in the answer."""
        name, _, id = self.path.removeprefix("/gradio_api/call/").partition("/")
        if sent:
            id = uuid.uuid4().hex
            self.sessions[id] = json.loads(sent)["data"]
            said = json.dumps({"event_id": id})
            return self.answer(200, said, Content_Type="application/json")
        if id not in self.sessions:
            return self.answer(200, "event: error", Content_Type="text/event-stream")
        said = f"data: {json.dumps([name + ' ' + self.sessions[id][0]])}"
        self.answer(200, said, Content_Type="text/event-stream")


def socket_io():
    import socketio
    import waitress

    server = socketio.Server(async_mode="threading", allow_upgrades=False)
    said = {}

    @server.on("say")
    def say(id, text):
        said.setdefault(id, []).append(text)
        return " ".join(said[id])

    waitress.serve(socketio.WSGIApp(server), host="127.0.0.1", port=PORT, threads=8)


if sys.argv[1] == "socket_io":
    socket_io()
else:
    ThreadingHTTPServer(("127.0.0.1", PORT), Plain).serve_forever()
