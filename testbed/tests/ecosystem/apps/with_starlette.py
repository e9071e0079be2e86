"""A counter in a Starlette session, as FastAPI has them, kept by starsessions over asyncio."""

import os

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore


async def healthz(request):
    return PlainTextResponse("ok")


async def visit(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return PlainTextResponse(str(request.session["visits"]))


async def peek(request):
    return PlainTextResponse(str(request.session.get("visits", 0)))


async def logout(request):
    request.session.clear()
    return PlainTextResponse("bye")


store = RedisStore(os.environ["REDIS_URL"])
app = Starlette(
    routes=[
        Route("/healthz", healthz),
        Route("/visit", visit),
        Route("/peek", peek),
        Route("/logout", logout),
    ],
    middleware=[
        Middleware(SessionMiddleware, store=store, lifetime=3600, cookie_https_only=False),
        Middleware(SessionAutoloadMiddleware),
    ],
)
uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
