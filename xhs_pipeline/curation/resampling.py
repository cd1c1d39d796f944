"""Shrinking 8-bit images, in numba kernels. Imports numba: import this module inside functions only. Knows no files.

A separable bicubic filter (Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5), stretched as
the ratio of the sizes grows, so that every source pixel counts. Weights are whole 128ths and all arithmetic
is in integers, so the result is the same on every machine.

A pixel is 4 channels of 8 bits. Sums are kept in 16-bit lanes: vertically the compiler works on many lanes per instruction;
horizontally the 4 lanes of a pixel are one 64-bit word, and one multiplication weighs all of them.
"""

from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt

ONE = 7  # weights sum to 1 << ONE
# Pillow's BICUBIC stretches by the whole ratio. Lanczos is sharper than that: at 0.8 of it the result is as close to Lanczos,
# at four fifths of the work (SSIM in xhs_pipeline_tests/benchmarks/images.md).
STRETCH = 0.8
# The filter overshoots: a sum lies between -OFFSET and twice 255, in units of one grey level. The offset keeps it positive, and
# the half rounds. A lane may wrap around on the way, and borrow from its neighbour: only the final sum has to fit.
OFFSET = 96
_START = (OFFSET << ONE) + (1 << (ONE - 1))
_FOUR_STARTS = sum(_START << (16 * lane) for lane in range(4))


def shrink(pixels: npt.NDArray[np.uint8], extent: tuple[float, float], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`pixels` (height, width, 4) resampled to (size[1], size[0], 4), uint8 both.

    extent: width and height of the picture in source pixels, from their upper left corner; a little less than the array's
    where its last column or row covers only part of a pixel. Each at least `size`: the filter is not made for enlarging.
    """
    height, width = pixels.shape[:2]
    result = np.empty((size[1], size[0], 4), np.uint8)
    columns, column_weights = _taps(width, extent[0], size[0])
    rows, row_weights = _taps(height, extent[1], size[1])
    _resample(
        pixels.reshape(height, -1),
        result.reshape(size[1], -1),
        rows,
        row_weights.astype(np.uint16),
        columns,
        column_weights.astype(np.uint64),
    )
    return result


def grey_blocks(pixels: npt.NDArray[np.uint8], across: int, down: int) -> npt.NDArray[np.uint8]:
    """Mean brightness (ITU-R BT.601, as Pillow's "L") of blocks of `across` x `down` pixels of RGBX `pixels` (height, width, 4);
    the blocks at the right and lower edge hold what is left. A block has at most 257 pixels."""
    height, width = pixels.shape[:2]
    result = np.empty((-(-height // down), -(-width // across)), np.uint8)
    _grey_blocks(pixels.reshape(height, -1), across, down, result)
    return result


@lru_cache(maxsize=16)
def _taps(available: int, extent: float, wanted: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The first source pixel of each of `wanted` places (wanted,), and the weights of it and its successors (wanted, taps).

    Taps that would lie outside are left out and the rest scaled up.
    """
    scale = extent / wanted
    reach = max(1.0, STRETCH * scale)
    centres = (np.arange(wanted) + 0.5) * scale
    count = min(available, int(np.ceil(4 * reach)))
    first = np.clip(np.ceil(centres - 2 * reach - 0.5).astype(np.int64), 0, available - count)
    x = np.abs((first[:, None] + np.arange(count) + 0.5 - centres[:, None]) / reach)
    cubic = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    exact = cubic / cubic.sum(axis=1, keepdims=True) * (1 << ONE)
    weights = np.floor(exact).astype(np.int64)
    missing = (1 << ONE) - weights.sum(axis=1, keepdims=True)
    weights += np.argsort(np.argsort(weights - exact, axis=1), axis=1) < missing  # to those that lost most
    return first.astype(np.uint64), weights


@numba.njit(cache=True)
def _resample(source, result, rows, row_weights, columns, column_weights):  # type: ignore[no-untyped-def]
    """source and result (height, 4 width). Two rows at a time, which share the horizontal weights."""
    upper, lower = np.empty(source.shape[1], np.uint16), np.empty(source.shape[1], np.uint16)
    upper_sums, lower_sums = np.empty(len(columns), np.uint64), np.empty(len(columns), np.uint64)
    for y in range(0, len(rows), 2):
        z = min(y + 1, len(rows) - 1)
        _row(source, upper, rows[y], row_weights[y])
        _row(source, lower, rows[z], row_weights[z])
        _columns(upper.view(np.uint64), lower.view(np.uint64), upper_sums, lower_sums, columns, column_weights)
        _levels(upper_sums.view(np.uint16), result[y])
        _levels(lower_sums.view(np.uint16), result[z])


# Below, every index is unsigned and every lane and row weight kept at 16 bits: numba checks signed indices for being negative
# and widens sums to 64 bits, and either one keeps the compiler from working on many lanes at once.
@numba.njit(cache=True)
def _row(source, lanes, start, weights):  # type: ignore[no-untyped-def]
    """One row of grey levels in `lanes`, from the rows of the source that begin at `start`."""
    lanes[:] = np.uint16(_START)
    width = np.uint64(len(lanes))
    for tap in range(np.uint64(len(weights))):
        _add(lanes, source[start + tap], weights[tap])
    low, high = np.uint16(OFFSET), np.uint16(OFFSET + 255)
    for i in range(width):
        lanes[i] = np.uint16(min(max(np.uint16(lanes[i] >> np.uint16(ONE)), low), high) - low)


@numba.njit(cache=True)
def _add(lanes, line, weight):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(len(lanes))):
        lanes[i] = np.uint16(lanes[i] + np.uint16(weight * np.uint16(line[i])))


@numba.njit(cache=True)
def _columns(upper, lower, upper_sums, lower_sums, columns, weights):  # type: ignore[no-untyped-def]
    taps = np.uint64(weights.shape[1])
    for x in range(np.uint64(len(columns))):
        first = columns[x]
        above = below = np.uint64(_FOUR_STARTS)
        for tap in range(taps):
            weight = weights[x, tap]
            above += weight * upper[first + tap]
            below += weight * lower[first + tap]
        upper_sums[x] = above
        lower_sums[x] = below


@numba.njit(cache=True)
def _levels(lanes, levels):  # type: ignore[no-untyped-def]
    """From sums to grey levels, 0 to 255."""
    low, high = np.uint16(OFFSET), np.uint16(OFFSET + 255)
    for i in range(np.uint64(len(lanes))):
        levels[i] = np.uint8(np.uint16(min(max(np.uint16(lanes[i] >> np.uint16(ONE)), low), high) - low))


@numba.njit(cache=True)
def _grey_blocks(source, across, down, result):  # type: ignore[no-untyped-def]
    lanes, sums = np.empty(source.shape[1], np.uint16), np.empty(1, np.uint64)
    pixels, channels = lanes.view(np.uint64), sums.view(np.uint16)
    for row in range(result.shape[0]):
        lanes[:] = 0
        bottom = min((row + 1) * down, source.shape[0])
        for y in range(row * down, bottom):
            _add(lanes, source[y], np.uint16(1))
        for column in range(result.shape[1]):
            right = min((column + 1) * across, len(pixels))
            total = np.uint64(0)
            for x in range(np.uint64(column * across), np.uint64(right)):
                total += pixels[x]
            sums[0] = total
            count = (bottom - row * down) * (right - column * across)
            grey = 19595 * np.int64(channels[0]) + 38470 * np.int64(channels[1]) + 7471 * np.int64(channels[2])
            result[row, column] = (grey // count + 32768) >> 16
