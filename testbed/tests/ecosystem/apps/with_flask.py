"""A counter in a Flask session, kept by Flask-Session."""

import os

import redis
from flask import Flask, session
from flask_session import Session
from waitress import serve

app = Flask(__name__)
app.config["SESSION_TYPE"] = "redis"
app.config["SESSION_REDIS"] = redis.from_url(os.environ["REDIS_URL"])
app.config["SESSION_KEY_PREFIX"] = "flask:"
Session(app)


@app.get("/healthz")
def healthz():
    return "ok"


@app.get("/visit")
def visit():
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.get("/peek")
def peek():
    return str(session.get("visits", 0))


@app.get("/logout")
def logout():
    session.clear()
    return "bye"


serve(app, listen=f"127.0.0.1:{os.environ['PORT']}")
