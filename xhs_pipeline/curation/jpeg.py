"""Dropping the metadata of a JPEG without touching its compressed pixels (ITU-T T.81, annex B). Decodes nothing."""

import re

_SOI, _EOI, _SOS, _DHT, _DQT, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE
_DAC, _DHP, _EXP = 0xCC, 0xDE, 0xDF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}  # SOF0 to SOF15; C8 is reserved
_KEPT = _FRAMES | {_SOS, _DHT, _DQT, _DRI}
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended sequential, progressive
_LUMA_SAMPLING = frozenset({0x11, 0x21, 0x12, 0x22, 0x41})
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
    None is returned when the structure is damaged, when JFIF carries a thumbnail, when the colours rest on an Adobe segment or
    on unusual component numbers in the absence of JFIF, and for what not every decoder reads: arithmetic coding, lossless and
    hierarchical frames, 12 bits, other than one or three components, sampling other than 4:4:4, 4:4:0, 4:2:2, 4:2:0 and 4:1:1.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept = [data[:2]]
    waiting: list[bytes] = []  # for a scan that uses them
    frames: list[bytes] = []
    position, has_jfif, has_adobe = 2, False, False
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == _EOI:
            if len(frames) != 1 or not _widely_read(frames[0], has_jfif, has_adobe):
                return None
            return b"".join([*kept, b"\xff\xd9"])
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
            frames += [part for part in waiting if part[1] in _FRAMES]
            waiting = []
            position = found.start()
    return None


def _widely_read(frame: bytes, has_jfif: bool, has_adobe: bool) -> bool:
    """Whether every common decoder shows this frame alike, once nothing but JFIF is left to tell it the colours."""
    components = frame[9] if len(frame) > 9 else 0
    if (
        frame[1] not in _HUFFMAN_FRAMES
        or components not in (1, 3)
        or len(frame) != 10 + 3 * components
        or frame[4] != 8
    ):
        return False
    numbers, sampling = tuple(frame[10::3]), frame[11::3]
    if components == 1:
        return True
    if not has_jfif and (has_adobe or numbers != (1, 2, 3)):
        return False
    return sampling[0] in _LUMA_SAMPLING and sampling[1] == sampling[2] == 0x11
