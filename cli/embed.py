# SPDX-License-Identifier: LGPL-2.1-or-later
"""Puts the page's template and the plotting library into a C file.

embed.py TEMPLATE CHARTS OUTPUT. The template is cut at its two marks, behind which come
the library and the report. The library must not end the script that it stands in.
"""
import sys

MARKS = ("/*CHARTS*/", "/*REPORT*/")


def c_byte(b):
    return str(b) if b < 128 else f"'\\x{b:02x}'"  # plain char may be signed


def c_text(name, data):
    rows = []
    for at in range(0, len(data), 24):
        rows.append(",".join(map(c_byte, data[at:at + 24])))
    body = ",\n".join(rows + ["0"])
    return f"extern const char {name}[];\nconst char {name}[] = {{\n{body}\n}};\n"


def main():
    template, charts, output = sys.argv[1:]
    with open(template, encoding="utf-8") as f:
        head, rest = f.read().split(MARKS[0])
    middle, tail = rest.split(MARKS[1])
    with open(charts, "rb") as f:
        library = f.read()
    if b"</script" in library.lower() or b"\0" in library:
        sys.exit(f"{charts} cannot stand in a page")
    library = b"\n".join(line for line in library.split(b"\n")
                         if not line.startswith(b"//# sourceMappingURL"))
    with open(output, "w", encoding="ascii") as f:
        f.write("/* made by cli/embed.py */\n")
        for name, data in (("head", head.encode()), ("middle", middle.encode()),
                           ("tail", tail.encode()), ("charts", library)):
            f.write(c_text("cli_page_" + name, data))


main()
