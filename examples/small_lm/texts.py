"""Public-domain English from Debian packages.

Jane Austen's six novels come from `r-cran-janeaustenr`, the King James Bible from
`bible-kjv` and `bible-kjv-text`; the copyright of both texts has expired. Each function
returns documents: one for each chapter.
"""

import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

AUSTEN = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
R_STRING = b"\x00\x04\x00\x09"
"""How a character string begins in R's serialization format."""


def novels(path: Path = AUSTEN) -> list[str]:
    """Return the chapters of the novels, one paragraph to a line."""
    chapters = []
    for lines in _r_strings(path):
        text = "\n".join(lines).replace("\t", " ")
        for chapter in re.split(r"\n(?=(?:CHAPTER|Chapter) )", text):
            paragraphs = (re.sub(r"\s+", " ", p) for p in chapter.split("\n\n"))
            chapters.append("\n\n".join(p.strip() for p in paragraphs if p.strip()))
    return [c for c in chapters if len(c) > 500]


def bible() -> list[str]:
    """Return the chapters of the Bible, one verse to a line."""
    command = ["bible", "-l100000", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    chapters = re.split(r"\n\n(?=\S+[^\n]* \d+\n\n)", text)
    return [re.sub(r"\n *\d+ ", "\n", chapter).strip() for chapter in chapters]


def _r_strings(path: Path) -> Iterator[list[str]]:
    """Yield the strings of each object in an R data base.

    An object is a length of four bytes and a `zlib` stream; a string in it is a tag, a
    length of four bytes and the characters.
    """
    raw = path.read_bytes()
    while raw:
        stream = zlib.decompressobj()
        data = stream.decompress(raw[4:])
        raw = stream.unused_data
        strings, start = [], 0
        while (start := data.find(R_STRING, start)) >= 0:
            (size,) = struct.unpack_from(">i", data, start + 4)
            start += 8
            strings.append(data[start : start + max(size, 0)].decode("utf-8"))
            start += max(size, 0)
        yield strings
