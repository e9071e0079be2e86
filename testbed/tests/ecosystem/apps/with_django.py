"""A counter in a Django session, kept in the cache that Django has for Redis."""

import os

import django
from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from waitress import serve

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="test",
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    INSTALLED_APPS=["django.contrib.sessions"],
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["REDIS_URL"],
        }
    },
)
django.setup()


def healthz(request):
    return HttpResponse("ok")


def visit(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


def peek(request):
    return HttpResponse(str(request.session.get("visits", 0)))


def logout(request):
    request.session.flush()
    return HttpResponse("bye")


def uses_the_cache(request):
    """What else an app may ask of its cache."""
    cache.set_many({"a": 1, "b": 2}, timeout=60)
    assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": 2}
    assert cache.add("a", 3) is False and cache.add("c", 3, timeout=60) is True
    assert cache.incr("a", 4) == 5 and cache.decr("a") == 4
    assert cache.touch("a", 120) and not cache.touch("none", 120)
    assert cache.has_key("b") and cache.delete("b") and cache.get("b") is None
    cache.delete_many(["a", "c"])
    assert cache.get("a") is None
    return HttpResponse("fine")


urlpatterns = [
    path("healthz", healthz),
    path("visit", visit),
    path("peek", peek),
    path("logout", logout),
    path("cache", uses_the_cache),
]

serve(get_wsgi_application(), listen=f"127.0.0.1:{os.environ['PORT']}")
