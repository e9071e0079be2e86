"""What libraries of Python keep in Redis, asked at one endpoint after the other.

Each library is a generator that prints what it sees; where it yields, the endpoint A may be gone: it
goes on at B and C. REDIS_PORTS names the three, or thrice the same one of a real server, where each
is to see the same. `libraries.py LIBRARY...` prints `LIBRARY: STEP: WHAT`, then `half`, waits for a
line, and goes on.
"""

import asyncio
import os
import sys
import threading
import time
import traceback

import redis

A, B, C = (int(port) for port in os.environ["REDIS_PORTS"].split(","))


def client(port, **options):
    return redis.Redis(port=port, **options)


def url(port, index=0):
    return f"redis://127.0.0.1:{port}/{index}"


def redis_py_lock():
    one, other = (client(port).lock("lock:py", timeout=60) for port in (A, B))
    yield "acquired", one.acquire(blocking=False)
    yield "acquired by another", other.acquire(blocking=False)
    yield "extended", one.extend(10)
    yield None
    other = client(B).lock("lock:py", timeout=60)
    yield "acquired while held", other.acquire(blocking=False)
    last = client(C).lock("lock:py", timeout=60, thread_local=False)
    last.local.token = one.local.token
    last.release()
    yield "acquired when released", other.acquire(blocking=False)
    yield "owned", other.owned()
    try:
        last.release()
        yield "released by who does not own it", "yes"
    except redis.exceptions.LockError as error:
        yield "released by who does not own it", type(error).__name__
    other.release()
    yield "locked", client(C).lock("lock:py").locked()


def python_redis_lock():
    import redis_lock

    # Its keys are the lock's and the one that wakes those who wait.
    one = redis_lock.Lock(client(A), "{prl}", expire=60, id="one")
    other = redis_lock.Lock(client(B), "{prl}", expire=60, id="other")
    yield "acquired", one.acquire(blocking=False)
    yield "acquired by another", other.acquire(blocking=False)
    yield None
    again = redis_lock.Lock(client(C), "{prl}", expire=60, id="one")
    again.extend(30)
    yield "held by", again.get_owner_id()
    again.release()
    # Who waits is woken by a push to a list.
    yield "acquired when released", other.acquire(timeout=10)
    other.release()
    yield "locked", other.locked()


def dogpile_cache():
    from dogpile.cache import make_region

    def region(port):
        options = {
            "host": "127.0.0.1",
            "port": port,
            "distributed_lock": True,
            "lock_timeout": 30,
            "redis_expiration_time": 600,
            "thread_local_lock": False,
        }
        return make_region().configure("dogpile.cache.redis", expiration_time=300, arguments=options)

    made = []

    def make():
        made.append(1)
        return "value"

    yield "made", region(A).get_or_create("dog", make)
    yield "found", region(B).get_or_create("dog", make)
    yield None
    yield "found later", region(C).get_or_create("dog", make)
    yield "made so often", len(made)
    region(B).delete("dog")
    yield "made anew", region(C).get_or_create("dog", make)
    yield "made so often", len(made)


def redlock_py():
    from redlock import Redlock

    def manager(port):
        return Redlock([{"host": "127.0.0.1", "port": port, "db": 0}], retry_count=1)

    one = manager(A).lock("redlock-py", 60_000)
    yield "acquired", bool(one)
    yield "acquired by another", bool(manager(B).lock("redlock-py", 60_000))
    yield None
    yield "acquired while held", bool(manager(C).lock("redlock-py", 60_000))
    manager(B).unlock(one)
    yield "acquired when released", bool(manager(C).lock("redlock-py", 60_000))


def pottery():
    from pottery import NextID, RedisCounter, RedisDict, RedisSet, Redlock

    one = Redlock(key="pot", masters={client(A)}, auto_release_time=60)
    yield "acquired", one.acquire(blocking=False)
    other = Redlock(key="pot", masters={client(B)}, auto_release_time=60)
    yield "acquired by another", other.acquire(blocking=False)
    yield "next id", next(NextID(key="ids", masters={client(A)}))
    yield None
    other = Redlock(key="pot", masters={client(C)}, auto_release_time=60)
    yield "acquired while held", other.acquire(blocking=False)
    yield "next id", next(NextID(key="ids", masters={client(B)}))
    mapping = RedisDict({"a": 1}, redis=client(B), key="pot:dict")
    mapping["b"] = [1, 2]
    yield "dict", sorted(RedisDict(redis=client(C), key="pot:dict").items())
    yield "set", sorted(RedisSet({"x", "y"}, redis=client(B), key="pot:set"))
    counter = RedisCounter("hello", redis=client(C), key="pot:counter")
    yield "counter", sorted(counter.items())


def limits():
    from limits import parse
    from limits.storage import storage_from_string
    from limits.strategies import (
        FixedWindowRateLimiter,
        MovingWindowRateLimiter,
        SlidingWindowCounterRateLimiter,
    )

    item = parse("4 per day")
    kinds = [FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]

    def hits(port, kind, count):
        limiter = kind(storage_from_string(url(port)))
        return [limiter.hit(item, kind.__name__, "ada") for _ in range(count)]

    for kind in kinds:
        yield kind.__name__, hits(A, kind, 2) + hits(B, kind, 1)
    yield None
    for kind in kinds:
        yield kind.__name__, hits(C, kind, 1) + hits(B, kind, 2)
        left = kind(storage_from_string(url(C))).get_window_stats(item, kind.__name__, "ada")
        yield "left", left.remaining


def flask_limiter():
    from flask import Flask
    from flask_limiter import Limiter

    def app(port):
        app = Flask("limited")
        limiter = Limiter(
            lambda: "ada",
            app=app,
            storage_uri=url(port),
            strategy="moving-window",
            default_limits=["3 per day"],
        )
        assert limiter
        app.get("/")(lambda: "in")
        return app.test_client()

    yield "in", [app(port).get("/").status_code for port in (A, B)]
    yield None
    yield "in", [app(port).get("/").status_code for port in (B, C, C)]


def slowapi():
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    def app(port):
        limiter = Limiter(key_func=lambda: "bob", storage_uri=url(port))

        @limiter.limit("3/day")
        async def limited(request: Request):
            return PlainTextResponse("in")

        app = Starlette(routes=[Route("/", limited)])
        app.state.limiter = limiter
        app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
        return TestClient(app)

    yield "in", [app(port).get("/").status_code for port in (A, B)]
    yield None
    yield "in", [app(port).get("/").status_code for port in (B, C, C)]


def django_redis():
    from django.conf import settings

    if not settings.configured:
        caches = {
            name: {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url(port, 1)}
            for name, port in [("default", A), ("b", B), ("c", C)]
        }
        settings.configure(CACHES=caches)
    from django.core.cache import caches

    yield "set", caches["default"].set("k", {"a": 1}, timeout=600)
    one = caches["default"].lock("dj", timeout=60)
    yield "locked", one.acquire(blocking=False)
    yield "locked by another", caches["b"].lock("dj", timeout=60).acquire(blocking=False)
    yield None
    yield "get", caches["c"].get("k")
    yield "locked while held", caches["b"].lock("dj", timeout=60).acquire(blocking=False)
    yield "incr", [caches["b"].add("n", 1, timeout=60), caches["c"].incr("n", 4)]
    yield "many", [caches["b"].set_many({"x": 1, "y": 2}), caches["c"].get_many(["x", "y"])]
    yield "keys", sorted(caches["c"].keys("[xy]"))
    yield "deleted", caches["b"].delete_pattern("[xy]")


def socketio():
    import socketio as sio

    def pair(ports, event):
        """Two servers, each with a client's room, and what reaches them."""
        heard = []

        async def run():
            servers = []
            for port in ports:
                manager = sio.AsyncRedisManager(url(port))
                server = sio.AsyncServer(async_mode="asgi", client_manager=manager)

                async def count_emit(message, *, at=len(servers), **_):
                    heard.append((at, message["event"], message["data"]))

                manager._handle_emit = count_emit
                manager.set_server(server)
                manager.initialize()
                servers.append(manager)
            # They listen from some moment on.
            asked = client(ports[-1])
            while dict(asked.pubsub_numsub("socketio"))[b"socketio"] < len(ports):
                await asyncio.sleep(0.05)
            outside = sio.RedisManager(url(ports[0]), write_only=True)
            await asyncio.to_thread(outside.emit, event, {"n": 1}, room="r")
            until = time.monotonic() + 20
            while len(heard) < len(ports) and time.monotonic() < until:
                await asyncio.sleep(0.05)
            for manager in servers:
                manager.thread.cancel()

        asyncio.run(run())
        return sorted(heard)

    yield "told", pair((A, B), "first")
    yield None
    yield "told", pair((B, C), "second")


def channels_redis_pubsub():
    from channels_redis.pubsub import RedisPubSubChannelLayer

    async def group(ports):
        layers = [RedisPubSubChannelLayer(hosts=[url(port)]) for port in ports]
        channels = []
        for layer in layers:
            name = await layer.new_channel()
            await layer.group_add("room", name)
            channels.append(name)
        await layers[0].group_send("room", {"type": "hello", "n": 1})
        got = []
        for layer, name in zip(layers, channels):
            got.append(await asyncio.wait_for(layer.receive(name), 20))
            await layer.flush()
        return got

    yield "heard", asyncio.run(group((A, B)))
    yield None
    yield "heard", asyncio.run(group((B, C)))


def channels_redis_core():
    from channels_redis.core import RedisChannelLayer

    async def send(ports):
        one, other = (RedisChannelLayer(hosts=[url(port)], prefix="{asgi}") for port in ports)
        await one.send("chan", {"type": "hello"})
        got = [await asyncio.wait_for(other.receive("chan"), 20)]
        name = await other.new_channel()
        await other.group_add("room", name)
        await one.group_send("room", {"type": "all"})
        got.append(await asyncio.wait_for(other.receive(name), 20))
        for layer in (one, other):
            await layer.close_pools()
        return got

    yield "got", asyncio.run(send((A, B)))
    yield None
    yield "got", asyncio.run(send((B, C)))


def rq():
    from rq import Queue, SimpleWorker

    def work(port):
        worker = SimpleWorker(["{rq}"], connection=client(port))
        return worker.work(burst=True, logging_level="ERROR")

    job = Queue("{rq}", connection=client(A)).enqueue(pow, 2, 5)
    yield "done", [work(B), job.return_value(refresh=True)]
    job = Queue("{rq}", connection=client(B)).enqueue(pow, 2, 6)
    yield None
    yield "done later", [work(C), Queue("{rq}", connection=client(B)).fetch_job(job.id).result]


def celery():
    from celery import Celery

    def app(port):
        app = Celery("work", broker=url(port), backend=url(port))
        prefix = {"global_keyprefix": "{celery}"}
        app.conf.update(
            broker_transport_options=prefix,
            result_backend_transport_options=prefix,
            broker_connection_retry_on_startup=True,
            worker_pool="solo",
            worker_hijack_root_logger=False,
        )

        @app.task(name="double", shared=False)
        def double(n):
            return 2 * n

        return app, double

    def work(port, ask, n):
        from celery.contrib.testing.worker import start_worker

        app_there, _ = app(port)
        _, double = app(ask)
        with start_worker(
            app_there, pool="solo", perform_ping_check=False, shutdown_timeout=20, loglevel="ERROR"
        ):
            return double.delay(n).get(timeout=30)

    yield "done", work(B, A, 4)
    yield None
    yield "done", work(C, B, 5)


def fenced_lock():
    """Several clients take a lock again and again, at all endpoints, while one of them goes away: what
    they write goes to a resource that believes nobody with an older token than it has seen."""
    lease = 20
    over = threading.Event()
    guard = threading.Lock()
    seen = {"token": 0, "writes": 0, "stale": 0, "holders": 0, "together": 0}
    after = {B: 0, C: 0}

    def hold(port):
        at = client(port, socket_timeout=15)
        while not over.is_set():
            try:
                lock = at.lock("{fence}:lock", timeout=lease, sleep=0.01)
                if not lock.acquire(blocking_timeout=30):
                    continue
                begun = time.monotonic()
                token = at.incr("{fence}:token")
                with guard:
                    seen["holders"] += 1
                    if time.monotonic() - begun < lease / 2:
                        seen["together"] += seen["holders"] > 1
                        seen["stale"] += token <= seen["token"]
                    seen["token"] = max(seen["token"], token)
                    seen["writes"] += 1
                    if half.is_set() and port in after:
                        after[port] += 1
                time.sleep(0.002)
                with guard:
                    seen["holders"] -= 1
                lock.release()
            except redis.exceptions.RedisError:
                if port == A and half.is_set():
                    return
                time.sleep(0.05)

    half = threading.Event()
    threads = [threading.Thread(target=hold, args=(port,)) for port in (A, B, C, A, B, C)]
    for thread in threads:
        thread.start()
    while seen["writes"] < 30:
        time.sleep(0.01)
    half.set()
    yield None
    until = time.monotonic() + 60
    while min(after.values()) < 10 and time.monotonic() < until:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    yield "held after the loss", min(after.values()) >= 10
    yield "two at once", seen["together"]
    yield "stale tokens", seen["stale"]


LIBRARIES = {
    "redis-py lock()": redis_py_lock,
    "python-redis-lock": python_redis_lock,
    "dogpile.cache": dogpile_cache,
    "redlock-py": redlock_py,
    "pottery": pottery,
    "limits": limits,
    "flask-limiter": flask_limiter,
    "slowapi": slowapi,
    "django-redis": django_redis,
    "python-socketio": socketio,
    "channels_redis, pub/sub layer": channels_redis_pubsub,
    "channels_redis, core layer": channels_redis_core,
    "rq": rq,
    "celery": celery,
    "redis-py lock(), fenced": fenced_lock,
}


def half(name, steps):
    try:
        for step in steps:
            if step is None:
                return True
            what, value = step
            print(f"{name}: {what}: {value}", flush=True)
    except Exception as error:
        print(f"{name}: failed: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        if os.environ.get("TRACE"):
            traceback.print_exc()
    return False


if __name__ == "__main__":
    going = [(name, LIBRARIES[name]()) for name in sys.argv[1:] or LIBRARIES]
    going = [(name, steps) for name, steps in going if half(name, steps)]
    print("half", flush=True)
    sys.stdin.readline()
    for name, steps in going:
        half(name, steps)
    print("end", flush=True)
    os._exit(0)
