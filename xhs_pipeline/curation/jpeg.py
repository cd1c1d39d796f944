"""Dropping the metadata of a JPEG without touching its compressed pixels (ITU-T T.81, annex B). Decodes nothing."""

import re

_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
# Inside compressed data 0xFF is followed by 0x00 (a literal 0xFF), a restart marker D0-D7 or another 0xFF (filling).
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def strip_metadata(data: bytes) -> bytes | None:
    """The same JPEG without APPn and COM segments and without anything after its end; None when that could change its look.

    A plain JFIF header (APP0, 16 bytes, no thumbnail) stays: it holds no data about anyone and tells decoders the colour
    space. None is returned when the structure is damaged, when JFIF carries a thumbnail, or when an Adobe segment decides
    the colours in the absence of JFIF; such a file has to be encoded anew.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept = [data[:2]]
    position, has_jfif, has_adobe = 2, False, False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            return None if has_adobe and not has_jfif else b"".join(kept)
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if length < 2 or end > len(data) or marker in (0x00, 0x01, _SOI) or 0xD0 <= marker <= 0xD7:
            return None
        segment = data[position:end]
        if marker == _APP0 and segment[4:9] == b"JFIF\x00" and not has_jfif:
            if length != 16 or segment[16:18] != b"\x00\x00":
                return None
            has_jfif = True
            kept.append(segment)
        elif marker == _APP14 and segment[4:9] == b"Adobe":
            has_adobe = True
        elif not (_APP0 <= marker <= 0xEF or marker == _COM):
            kept.append(segment)
        position = end
        if marker == _SOS:
            found = _MARKER_AFTER_SCAN.search(data, position)
            if found is None:
                return None
            kept.append(data[position : found.start()])
            position = found.start()
            if data[position + 1] == _EOI:
                kept.append(b"\xff\xd9")
                return None if has_adobe and not has_jfif else b"".join(kept)
    return None
