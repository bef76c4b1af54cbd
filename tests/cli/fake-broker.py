# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that says what it should not, or nothing: for cli-broken.sh.

    fake-broker.py SOCKET WORD

WORD: "names": one client, whose name is no UTF-8; "sums": two
clients with the largest and smallest figures there are; "counts": two whose scanners
counted something else in each counter; "many": 2000; "older": speaks another version
of the protocol; "silent": answers the
hello, then nothing; "full": listens, accepts nobody, and the backlog is full.

Writes "listening" when it does; ends with its standard input.
"""
import os
import re
import select
import socket
import struct
import sys

MAGIC = 0x47504D53
HELLO, CTL, WELCOME, ERROR, CTL_ITEM, CTL_END = 1, 7, 64, 65, 70, 71
RESULT = 4 + 32 + 2 + 1 + 3  # 64 bit words of struct samepage_result
VMAS_ADDED = 4 + 32 + 2
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../core/wire.h"),
          encoding="utf-8") as f:
    VERSION = int(re.search(r"#define CORE_WIRE_VERSION (\d+)", f.read())[1])
# 64 bit words of struct core_scan_counters, behind two of 32; it grows now and then.
with open(os.path.dirname(os.path.abspath(__file__)) + "/../../core/scan.h", encoding="utf-8") as f:
    SCAN = len(re.findall(r"^\tuint64_t \w+;",
                          re.search(r"struct core_scan_counters \{(.*?)\n\};", f.read(), re.S)[1],
                          re.M))
U64, S64_MIN, S64_MAX = (1 << 64) - 1, -(1 << 63), (1 << 63) - 1


def packet(kind, seq, body):
    return struct.pack("=IHHII", MAGIC, VERSION, kind, 16 + len(body), seq) + body


def welcome(seq):
    return packet(WELCOME, seq, struct.pack("=IIQQQQII8I", 0, 0, 0, 0, 0, 0, os.getpid(), 0,
                                             *[0] * 8))


def item(seq, pid, domain, comm, figure, vmas_added, scan=None):
    result = b"".join(struct.pack("=q" if i == VMAS_ADDED else "=Q",
                                  vmas_added if i == VMAS_ADDED else figure)
                      for i in range(RESULT))
    return packet(CTL_ITEM, seq, struct.pack("=iI64s64s", pid, os.getuid(), domain, comm)
                  + struct.pack("=iIII7Q", 0, 1, 1, 0, *[figure] * 7) + result + result
                  + struct.pack(f"=II{SCAN}Q", 1, 0, *(scan or [figure] * SCAN)))


def end(seq, items, slots):
    return packet(CTL_END, seq, struct.pack("=iIII13QII", 0, items, 1, items, slots, *[0] * 12, 0, 0))


def answer(word, seq):
    if word == "names":
        # Cut short, too long, surrogate, beyond the last one, stray; then two that are right.
        return [item(seq, 1, b"d", b"\x1b[31m\"\\\xc3(\xe0\x80\xaf\xed\xa0\x80"
                     b"\xf4\x90\x80\x80\x80\xc3\xa4\xf0\x9f\x98\x80\xe2\x82", 1, 1),
                end(seq, 1, 1)]
    if word == "counts":
        return [item(seq, 1, b"d", b"a", 1, 1, [1000 + i * i for i in range(SCAN)]),
                item(seq, 2, b"d", b"b", 1, 1, [5000 + 7 * i for i in range(SCAN)]),
                end(seq, 2, 5)]
    if word == "many":
        return [item(seq, i, b"d%d" % (i % 20), b"a", i, 1) for i in range(1, 2001)] \
            + [end(seq, 2000, 5)]
    return [item(seq, 1, b"d", b"a", U64, S64_MIN), item(seq, 2, b"d", b"b", U64, S64_MIN),
            end(seq, 2, 5)]


def serve(connection, word):
    connection.setblocking(True)
    while True:
        got = connection.recv(16384)
        if len(got) < 16:
            return
        _, _, kind, _, seq = struct.unpack("=IHHII", got[:16])
        if kind == HELLO and word == "older":
            connection.send(struct.pack("=IHHIIi200s", MAGIC, VERSION - 1, ERROR, 16 + 204, seq, -93,
                                        b"this broker speaks another version"))
        elif kind == HELLO:
            connection.send(welcome(seq))
        elif kind == CTL and word != "silent":
            for out in answer(word, seq):
                connection.send(out)


def main():
    path, word = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(0 if word == "full" else 8)
    waiting = []
    while word == "full":
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting[-1].setblocking(False)
        try:
            waiting[-1].connect(path)
        except BlockingIOError:
            break
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin] + ([] if word == "full" else [listener]), [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        with connection:
            try:
                serve(connection, word)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it left before our answer, or with our words unread


if __name__ == "__main__":
    main()
