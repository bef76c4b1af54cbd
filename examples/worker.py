# SPDX-License-Identifier: LGPL-2.1-or-later
"""One worker of the demonstration: what a worker of a Python server looks like.

It imports what such a worker imports, builds tables (most of them the same in
every worker, some its own), and then works: it changes a part of its data, over
and over, and looks whether the rest is what it was. It knows nothing of samepage.

    worker.py NUMBER

Standard input: "check" makes it verify every byte of its data against the
checksum of the beginning; "quit" or the end of input, or SIGTERM, ends it.
Standard output: "ready CHECKSUM", and per check "same" or "DIFFERENT", each
with the number of rounds worked so far.
"""
import argparse
import asyncio
import csv
import decimal
import email.message
import hashlib
import http.server
import json
import logging
import multiprocessing
import random
import re
import select
import signal
import sqlite3
import ssl
import sys
import unittest
import urllib.request
import xml.etree.ElementTree

ROWS = 20000
PAGES = 256          # rendered ones in a cache, of PAGE_BYTES
PAGE_BYTES = 32 << 10
HOT_BYTES = 1 << 20

USED = (argparse, asyncio, csv, decimal, email.message, http.server, logging,
        multiprocessing, re, sqlite3, ssl, unittest, urllib.request, xml.etree.ElementTree)


def build(number):
    """Tables of the usual kinds; the last fifth of the rows is the worker's own."""
    common = random.Random(1)
    own = random.Random(f"worker {number}")
    rows = {}
    for i in range(ROWS):
        rng = common if i < ROWS * 4 // 5 else own
        rows[f"row-{i:06d}"] = {
            "id": i,
            "price": rng.random(),
            "tags": [f"tag-{rng.randrange(500)}" for _ in range(4)],
            "text": "x" * rng.randrange(80),
        }
    return {
        "rows": rows,
        "config": json.loads(json.dumps({f"key-{i}": [i, str(i)] for i in range(5000)})),
        "cache": [common.randbytes(PAGE_BYTES) for _ in range(PAGES)],  # the same everywhere
        "own": [own.randbytes(PAGE_BYTES) for _ in range(PAGES // 4)],  # nobody else's
        "buffers": [bytearray(PAGE_BYTES) for _ in range(PAGES // 4)],  # zeros as yet
    }


def checksum(data):
    h = hashlib.blake2b(digest_size=16)
    for key, row in data["rows"].items():
        h.update(f"{key} {row['id']} {row['price']!r} {row['tags']} {row['text']}".encode())
    h.update(json.dumps(data["config"]).encode())
    for name in ("cache", "own", "buffers"):
        for page in data[name]:
            h.update(page)
    return h.hexdigest()


def work(hot, state):
    """One round: write into a buffer and see that what was written before is there."""
    at = state["rounds"] * 4096 % HOT_BYTES
    if hot[at:at + 8] != state["last"].get(at, bytes(8)):
        state["lost"] += 1
    value = state["rounds"].to_bytes(8, "little")
    hot[at:at + 8] = value
    state["last"][at] = value
    state["rounds"] += 1


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C is for the demonstration
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: no traceback
    data = build(int(sys.argv[1]))
    first = checksum(data)
    hot = bytearray(HOT_BYTES)
    state = {"rounds": 0, "lost": 0, "last": {}}
    print("ready", first, flush=True)
    while True:
        work(hot, state)
        if not select.select([sys.stdin], [], [], 0.001)[0]:
            continue
        word = sys.stdin.readline().strip()
        if word == "check":
            good = checksum(data) == first and state["lost"] == 0
            print("same" if good else "DIFFERENT", state["rounds"], flush=True)
        else:
            return


if __name__ == "__main__":
    main()
