"""A site of Django's that refuses every host but its own, as in production."""

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from waitress import serve

settings.configure(
    ALLOWED_HOSTS=["shop.example"],
    SECRET_KEY="test",
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()


def home(request):
    return HttpResponse(request.get_host())


urlpatterns = [path("", home), path("healthz", home)]

serve(get_wsgi_application(), host="127.0.0.1", port=int(os.environ["PORT"]))
