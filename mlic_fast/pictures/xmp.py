# SPDX-License-Identifier: Apache-2.0
"""The orientation in an XMP packet: finding it and taking it out, in each form that RDF allows for it."""

from __future__ import annotations

import re

_NAMESPACE = rb"http://ns\.adobe\.com/tiff/1\.0/"

# Repetitions are bounded: `\s*` would take quadratic time in a packet of spaces.
_SPACE = rb"[ \t\r\n]{0,64}"
_DECLARED = re.compile(rb"xmlns:([A-Za-z_][\w.-]{0,63})" + _SPACE + rb"=" + _SPACE + rb"[\"']" + _NAMESPACE + rb"[\"']")
_MAX_PREFIXES = 8


def orientation(packet: bytes) -> int | None:
    """The orientation that the packet names, 1 to 8; None: it names none."""
    for pattern in _patterns(packet):
        match = pattern.search(packet)
        if match is not None:
            digits = next(group for group in match.groups() if group is not None).strip()
            return int(digits) if digits in {b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"} else None
    return None


def without_orientation(packet: bytes) -> bytes:
    """The packet without the orientation, be it an attribute or an element."""
    for pattern in _patterns(packet):
        packet = pattern.sub(b"", packet)
    return packet


def _patterns(packet: bytes) -> list[re.Pattern[bytes]]:
    """Attribute and element, for the usual prefix and for those that the packet binds to the namespace."""
    prefixes = {b"tiff", *_DECLARED.findall(packet)[:_MAX_PREFIXES]}
    patterns = []
    for prefix in sorted(prefixes):
        name = re.escape(prefix) + rb":Orientation"
        value = rb"(?:\"([^\"<>]{0,64})\"|'([^'<>]{0,64})')"
        patterns.append(re.compile(rb"[ \t\r\n]" + name + _SPACE + rb"=" + _SPACE + value))
        attributes = rb"(?:[ \t\r\n][^<>]{0,256})?"
        end = rb"</" + name + _SPACE + rb">"
        patterns.append(re.compile(rb"<" + name + attributes + rb">([^<>]{0,64})" + end))
    return patterns
