"""What a file or a path is instead of what is wanted: recognised by its first bytes, or as an address of the web."""

import os
import re

ADDRESS = re.compile(r"(?i)^((https?|ftp|s3|gs|file|data):|\w{2,}:/)")
OTHER_FORMATS = (  # start of the file, name
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file (run git lfs pull)"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x89HDF", "an HDF5 file"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"%!PS", "a PostScript document"),
)


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is an address of the web instead."""
    return ADDRESS.match(os.fspath(path)) is not None


def url_message(path: str | os.PathLike) -> str:
    """What to say of an address of the web where a file is wanted."""
    # Path turns // into /; the slash is put back, so that the address appears as it was given.
    address = re.sub(r"^(\w+):/(?!/)", r"\1://", os.fspath(path))
    return f"{address} is an address, not a file; download it and give the file's path"


def recognise_content(data: bytes) -> str | None:
    """What a file is that is neither an image that can be read nor another binary file; None if unknown."""
    for start, kind in OTHER_FORMATS:
        if data.startswith(start):
            return kind
    if data[128:132] == b"DICM":
        return "a DICOM file"
    text = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<body")):
        return "an HTML page, as servers send instead of a missing file"
    if b"<svg" in text:
        return "a drawing in SVG"
    if text.startswith((b"<?xml", b"<")):
        return "an XML file"
    is_pnm = re.match(rb"p[1-7]\s", text) is not None
    if not is_pnm and all(byte >= 32 or byte in b"\t\r\n\f" for byte in data[:512]) and _decodes(data[:512]):
        return "a text file"
    return None


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:  # a character cut at the end is fine
        return error.start >= len(data) - 3 and len(data) > 8
    return True
