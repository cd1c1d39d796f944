"""Dropping the metadata of a JPEG without touching its compressed pixels (ITU-T T.81, annex B). Decodes nothing."""

import re

_SOI, _EOI, _SOS, _DHT, _DQT, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE
_DAC, _DHP, _EXP = 0xCC, 0xDE, 0xDF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}  # SOF0 to SOF15; C8 is reserved
_KEPT = _FRAMES | {_SOS, _DHT, _DQT, _DRI}
# Arithmetic conditioning and hierarchical frames: a decoder without them would see another picture.
_NEEDED_BY_FEW = frozenset({_DAC, _DHP, _EXP})
# Markers without a length (TEM, RSTn, a second SOI) have no place between segments.
_MISPLACED = frozenset({0x00, 0x01, _SOI, *range(0xD0, 0xD8)})
# Inside compressed data 0xFF is followed by 0x00 (a literal 0xFF), a restart marker D0-D7 or another 0xFF (filling).
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def strip_metadata(data: bytes) -> bytes | None:
    """The same JPEG with nothing but what decodes it; None when that could change its look, so it must be encoded anew.

    Kept are frame headers (SOFn), scans with their compressed data and restart markers, the tables before a scan (DHT, DQT,
    DRI) and a plain JFIF header (APP0, 16 bytes, no thumbnail), which holds no data about anyone and tells decoders the colour
    space. Everything else goes: every other segment, known or not, tables that no scan follows, and what stands after EOI.
    None is returned when the structure is damaged, when JFIF carries a thumbnail, when an Adobe segment decides the colours in
    the absence of JFIF, and for the rare kinds that need further segments (arithmetic conditioning, hierarchical).
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept = [data[:2]]
    waiting: list[bytes] = []  # for a scan that uses them
    position, has_jfif, has_adobe = 2, False, False
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == _EOI:
            return None if has_adobe and not has_jfif else b"".join([*kept, b"\xff\xd9"])
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if length < 2 or end > len(data) or marker in _MISPLACED or marker in _NEEDED_BY_FEW:
            return None
        segment = data[position:end]
        if marker == _APP0 and segment[4:9] == b"JFIF\x00" and not has_jfif:
            if length != 16 or segment[16:18] != b"\x00\x00":
                return None
            has_jfif = True
            waiting.append(segment)
        elif marker == _APP14 and segment[4:9] == b"Adobe":
            has_adobe = True
        elif marker in _KEPT:
            waiting.append(segment)
        position = end
        if marker == _SOS:
            found = _MARKER_AFTER_SCAN.search(data, position)
            if found is None:
                return None
            kept += [*waiting, data[position : found.start()]]
            waiting = []
            position = found.start()
    return None
