# SPDX-License-Identifier: LGPL-2.1-or-later
"""Workers of a small web service, as gunicorn's are: a WSGI application, a loop.

    worker.py FOLDER one NUMBER     one worker
    worker.py FOLDER fork COUNT     a master that forks COUNT; each loads the application
                                    itself, after the fork, which is gunicorn's default

Each listens at FOLDER/worker-NUMBER.sock (there when it is ready). /row/N renders a row,
/check says whether all data is what it was. Nobody reads what is not asked for.
"""
import asyncio
import csv
import decimal
import email.message
import hashlib
import html
import json
import logging
import os
import random
import re
import signal
import socketserver
import sqlite3
import ssl
import sys
import urllib.request
import wsgiref.simple_server
import xml.etree.ElementTree

USED = (asyncio, csv, decimal, email.message, html, logging, re, sqlite3, ssl, urllib.request,
        xml.etree.ElementTree)
ROWS = 10000
TEMPLATES = 128
TEMPLATE_BYTES = 32 << 10


class Application:
    """Tables that all workers have, and a fifth that only this one has."""

    def __init__(self, number):
        common, own = random.Random(1), random.Random(f"worker {number}")
        self.rows = [{"id": i, "price": common.random(), "text": "x" * common.randrange(80),
                      "tags": [f"tag-{common.randrange(500)}" for _ in range(4)]}
                     for i in range(ROWS)]
        self.config = json.loads(json.dumps({f"key-{i}": [i, str(i)] for i in range(5000)}))
        self.templates = [common.randbytes(TEMPLATE_BYTES) for _ in range(TEMPLATES)]
        self.own = [own.randbytes(TEMPLATE_BYTES) for _ in range(TEMPLATES // 4)]
        self.requests = 0
        self.first = self.checksum()

    def checksum(self):
        h = hashlib.blake2b(digest_size=16)
        h.update(json.dumps([self.rows, self.config]).encode())
        for page in self.templates + self.own:
            h.update(page)
        return h.digest()

    def __call__(self, environ, start_response):
        self.requests += 1
        path = environ["PATH_INFO"]
        if path == "/check":
            body = "same" if self.checksum() == self.first else "DIFFERENT"
        else:
            row = self.rows[int(path.rsplit("/", 1)[1])]
            page = self.templates[row["id"] % TEMPLATES]
            body = json.dumps(dict(row, digest=hashlib.sha1(page).hexdigest()))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [html.escape(body, quote=False).encode()]


class Server(socketserver.UnixStreamServer, wsgiref.simple_server.WSGIServer):
    def server_bind(self):
        socketserver.UnixStreamServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self):
        return self.socket.accept()[0], ("local", 0)


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def work(folder, number):
    application = Application(number)
    path = os.path.join(folder, f"worker-{number}.sock")
    with Server(path + ".new", Quiet) as server:
        server.set_app(application)
        os.rename(path + ".new", path)
        server.serve_forever(60)


def main():
    folder, how, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if how == "one":
        work(folder, n)
    children = []
    for i in range(n):
        pid = os.fork()
        if pid == 0:
            work(folder, i)
        children.append(pid)

    def end(*_):
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
