#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys whose contents follow from their number, written to and read from a redis-server.

usage: redis-check.py write|verify|churn SOCKET KEYS [SECONDS]

write   all keys
verify  compare all of them; the status is not 0 if one differs
churn   rewrite them in turn with the same bytes, for so long: equal pages in the
        server are made and broken again, and verify must hold at any moment
"""
import hashlib
import socket
import sys
import time

BATCH = 200


def value(number):
    """A quarter unlike every other, the rest like many others."""
    if number % 4 == 0:
        return hashlib.shake_128(b"%d" % number).digest(6000)
    return (b"value %d " % (number % 64)) * 700


class Redis:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")

    def send(self, commands):
        out = []
        for words in commands:
            out.append(b"*%d\r\n" % len(words))
            out += [b"$%d\r\n%s\r\n" % (len(w), w) for w in words]
        self.sock.sendall(b"".join(out))

    def reply(self):
        line = self.file.readline()
        if line[:1] == b"$":
            size = int(line[1:])
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if line[:1] in (b"-", b""):
            raise SystemExit(f"redis says {line!r}")
        return line[1:-2]


def write(redis, keys):
    for begin in range(0, keys, BATCH):
        some = range(begin, min(begin + BATCH, keys))
        redis.send([(b"SET", b"samepage:%d" % n, value(n)) for n in some])
        for _ in some:
            redis.reply()


def verify(redis, keys):
    bad = 0
    for begin in range(0, keys, BATCH):
        some = range(begin, min(begin + BATCH, keys))
        redis.send([(b"GET", b"samepage:%d" % n) for n in some])
        for n in some:
            if redis.reply() != value(n):
                bad += 1
                print(f"key {n} has other contents")
    return bad


def main():
    what, path, keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
    redis = Redis(path)
    bad = 0
    if what == "write":
        write(redis, keys)
    elif what == "verify":
        bad = verify(redis, keys)
    else:
        end = time.monotonic() + float(sys.argv[4])
        while time.monotonic() < end and not bad:
            write(redis, keys)
            bad = verify(redis, keys)
    sys.exit(1 if bad else 0)


main()
