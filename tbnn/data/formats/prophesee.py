"""Prophesee's files: DAT (N-CARS), and raw recordings in EVT 2.0 and EVT 3.0."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events
from tbnn.data.formats.checks import Int64, header_length, make_events, time_order, unwrap, whole_records

HEADER_LIMIT = 65_536  # bytes
DAT_TYPES = (0x00, 0x0C, 0x28)  # kinds of change-detection events; all have records of 8 bytes
EVT2_KINDS = (0x0, 0x1, 0x8, 0xA, 0xE, 0xF)
EVT3_KINDS = (0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0xE, 0xF)
ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
LOW_FALL = 2048  # of the 12 low bits of a clock: more is the clock's next round, less are events out of turn
CHUNK = 65_536  # words expanded at once

Words = npt.NDArray[np.unsignedinteger]


def read_dat(path: Path) -> Events:
    """DAT, version 2: ``%`` lines, type u1, record size u1 (8), then records: time in us u4; x 14, y 14, p 4 bits.

    Little-endian, x in the lowest bits; the clock may wrap at 2**32. Times count from the first event.

    Source: Prophesee, DAT format (docs.prophesee.ai); Sironi et al. 2018, CVPR (N-CARS).
    """
    data = path.read_bytes()
    start, fields = _header(path, data)
    version = fields.get("version", "2")
    if version != "2":
        raise ValueError(f"{path}: expected version 2 of DAT, got {version[:40]!r}")
    if len(data) < start + 2 or data[start] not in DAT_TYPES or data[start + 1] != 8:
        raise ValueError(
            f"{path}: byte {start}: expected an event type of {DAT_TYPES} and the record size 8, got"
            f" {tuple(data[start : start + 2])}"
        )
    whole_records(path, data, start + 2, 8)
    time, word = np.frombuffer(data, "<u4", offset=start + 2).reshape(-1, 2).T
    x, y = (word & 0x3FFF).astype(np.int16), (word >> 14 & 0x3FFF).astype(np.int16)
    return make_events(path, x, y, unwrap(time.astype(np.int64), 32), (word >> 28).astype(np.uint8), from_zero=True)


def read_evt2(path: Path) -> Events:
    """EVT 2.0: ``%`` lines, then words u4, little-endian, their kind in the 4 highest bits.

    CD_OFF (0) and CD_ON (1) are events: 6 low bits of the time, x 11 bits, y 11 bits; TIME_HIGH (8) has the 28 high
    bits of the times after it. Triggers and vendors' words are left out, and so are events before the first
    TIME_HIGH, whose time nobody knows. Times count from the first event.

    Source: Prophesee, EVT 2.0 format (docs.prophesee.ai).
    """
    data, start = _raw_words(path, "2.0", 4)
    words = np.frombuffer(data, "<u4", offset=start)
    kind = (words >> 28).astype(np.uint8)
    _check_kinds(path, kind, EVT2_KINDS, start, 4)
    is_high = kind == TIME_HIGH
    high = unwrap((words[is_high] & 0xFFF_FFFF).astype(np.int64), 28) << 6
    event_at = np.flatnonzero(kind <= 1)
    latest = _latest(is_high, event_at)
    if latest.size and latest[0] < 0:
        event_at, latest = event_at[latest >= 0], latest[latest >= 0]
    word = words[event_at]
    x, y = (word >> 11 & 0x7FF).astype(np.int16), (word & 0x7FF).astype(np.int16)
    return make_events(path, x, y, high[latest] + (word >> 22 & 0x3F), kind[event_at], from_zero=True)


def read_evt3(path: Path) -> Events:
    """EVT 3.0: ``%`` lines, then words u2, little-endian, their kind in the 4 highest bits; each changes a state.

    ADDR_Y (0) sets the row; TIME_HIGH (8) and TIME_LOW (6) set 12 bits each of a clock that wraps at 2**24 us, and a
    new TIME_HIGH sets the low bits to 0 until TIME_LOW follows (low bits that start again without one are an error:
    expelliarmus 1.1 writes such files, of which the times are lost); ADDR_X (2) is an event: polarity and column;
    VECT_BASE_X (3) sets polarity and column of vectors; VECT_12 (4) and VECT_8 (5) have one bit for each of the next
    12 or 8 columns. Triggers, vendors' words and events before the first TIME_HIGH are left out. Times count from the
    first event.

    Source: Prophesee, EVT 3.0 format (docs.prophesee.ai).
    """
    data, start = _raw_words(path, "3.0", 2)
    words = np.frombuffer(data, "<u2", offset=start)
    kind = (words >> 12).astype(np.uint8)
    _check_kinds(path, kind, EVT3_KINDS, start, 2)
    mask = np.where(kind == ADDR_X, 1, 0).astype("<u2")  # of the columns from x0 on that fired
    for vector, bits in ((VECT_12, 0xFFF), (VECT_8, 0xFF)):
        np.copyto(mask, words & bits, where=kind == vector)
    first = np.flatnonzero(kind == TIME_HIGH)[:1]
    emit = np.flatnonzero(mask)
    emit = emit[emit > first[0]] if first.size else emit[:0]
    if emit.size == 0:
        raise ValueError(f"{path}: expected events after a TIME_HIGH word, got none in {len(words)} words")
    t = _evt3_times(path, words, kind, emit, start)
    x0, y, p = _evt3_places(path, words, kind, emit, start)
    order = time_order(path, t)
    if order is not None:
        emit, t, x0, y, p = emit[order], t[order], x0[order], y[order], p[order]
    return _expand(mask[emit], x0, y, t - t[0], p)


def _header(path: Path, data: bytes) -> tuple[int, dict[str, str]]:
    """Length of the ``%`` lines, and their fields: first word in lower case, the rest."""
    start = header_length(data, b"% ", end=b"% end")
    if not 0 < start <= HEADER_LIMIT:
        raise ValueError(
            f"{path}: expected a header of lines that start with '% ', at most {HEADER_LIMIT} bytes, got"
            + (f" {start} bytes" if start else f" a file that starts with {data[:8]!r}")
        )
    lines = data[:start].decode("latin-1").splitlines()
    words = [line[2:].strip().partition(" ") for line in lines]
    fields = {key.lower(): value.strip() for key, _, value in words}
    if fields.get("endianness", "little") != "little":
        raise ValueError(f"{path}: expected little-endian data, got {fields['endianness'][:40]!r}")
    return start, fields


def _raw_words(path: Path, version: str, size: int) -> tuple[bytes, int]:
    """The bytes of a raw recording in that version of EVT, and where its words of ``size`` bytes start."""
    data = path.read_bytes()
    start, fields = _header(path, data)
    form = fields.get("format", "").partition(";")[0].upper()  # as "EVT3;height=720;width=1280"
    got = fields.get("evt", {"EVT2": "2.0", "EVT21": "2.1", "EVT3": "3.0"}.get(form, form))
    if got != version:
        raise ValueError(f"{path}: expected a header that says 'evt {version}', got {got[:40]!r}")
    whole_records(path, data, start, size)
    return data, start


def _check_kinds(path: Path, kind: npt.NDArray[np.uint8], known: tuple[int, ...], start: int, size: int) -> None:
    bad = np.flatnonzero(~np.isin(kind, known))
    if bad.size:
        got, at = kind[bad[0]], start + size * bad[0]
        raise ValueError(f"{path}: byte {at}: expected a word of one of the kinds {known}, got kind {got}")


def _latest(marked: npt.NDArray[np.bool_], places: npt.NDArray[np.intp]) -> npt.NDArray[np.signedinteger]:
    """For each place (N,) the number of the last marked word up to it, -1 for none; ``marked`` is (words,)."""
    return np.cumsum(marked, dtype=np.int32 if len(marked) < 1 << 31 else np.int64)[places] - 1


def _evt3_times(path: Path, words: Words, kind: npt.NDArray[np.uint8], emit: npt.NDArray[np.intp], start: int) -> Int64:
    """The clock in us at the words ``emit`` (N,), all of which come after a TIME_HIGH word."""
    is_high, low_at = kind == TIME_HIGH, np.flatnonzero(kind == TIME_LOW)
    high = unwrap((words[is_high] & 0xFFF).astype(np.int64), 12)
    changes = np.zeros(len(words), bool)
    changes[is_high] = np.diff(high, prepend=-1) != 0
    low = (words[low_at] & 0xFFF).astype(np.int64)
    span = _latest(changes, low_at)  # the TIME_HIGH that holds at each TIME_LOW
    bad = np.flatnonzero((np.diff(low) < -LOW_FALL) & (np.diff(span) == 0)) + 1
    if bad.size:
        raise ValueError(
            f"{path}: byte {start + 2 * low_at[bad[0]]}: expected a new TIME_HIGH before TIME_LOW falls from"
            f" {low[bad[0] - 1]} to {low[bad[0]]}, got none"
        )
    latest = _latest(kind == TIME_LOW, emit)
    low, span = np.append(low, 0), np.append(span, -1)  # number -1: no TIME_LOW yet
    fresh = span[latest] == _latest(changes, emit)
    return (high[_latest(is_high, emit)] << 12) + low[latest] * fresh


def _evt3_places(
    path: Path, words: Words, kind: npt.NDArray[np.uint8], emit: npt.NDArray[np.intp], start: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """First column, row and polarity of the words ``emit`` (N,)."""
    row_at, base_at = np.flatnonzero(kind == ADDR_Y), np.flatnonzero(kind == VECT_BASE_X)
    row, base = _latest(kind == ADDR_Y, emit), _latest(kind == VECT_BASE_X, emit)
    vector = kind[emit] != ADDR_X
    for name, missing in (("ADDR_Y", row < 0), ("VECT_BASE_X", vector & (base < 0))):
        if missing.any():
            at = start + 2 * emit[np.argmax(missing)]
            raise ValueError(f"{path}: byte {at}: expected {name} before the first events that need it, got none")
    source = emit.copy()  # the word that has an event's column and polarity
    source[vector] = base_at[base[vector]]
    moved = np.cumsum(np.where(kind == VECT_12, 12, np.where(kind == VECT_8, 8, 0)))  # columns, after each word
    x0 = (words[source] & 0x7FF).astype(np.int64)
    x0[vector] += moved[emit[vector] - 1] - moved[source[vector]]
    bad = np.flatnonzero(x0 > 0x7FF)
    if bad.size:
        at = start + 2 * emit[bad[0]]
        raise ValueError(f"{path}: byte {at}: expected a vector within columns 0..2047, got column {x0[bad[0]]}")
    y = (words[row_at[row]] & 0x7FF).astype(np.int16)
    return x0.astype(np.int16), y, (words[source] >> 11 & 1).astype(np.uint8)


def _expand(
    mask: Words, x0: npt.NDArray[np.int16], y: npt.NDArray[np.int16], t: Int64, p: npt.NDArray[np.uint8]
) -> Events:
    """One event for each bit of the masks (N,); in pieces, since a word of 2 bytes can be 12 events of 13 bytes."""
    total = int(np.bitwise_count(mask).sum(dtype=np.int64))
    events = Events(
        np.empty(total, np.int16), np.empty(total, np.int16), np.empty(total, np.int64), np.empty(total, np.uint8)
    )
    done = 0
    for first in range(0, len(mask), CHUNK):
        piece = slice(first, first + CHUNK)
        bits = np.unpackbits(mask[piece].view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")  # (n, 16)
        word, column = np.nonzero(bits)
        into = slice(done, done + len(word))
        done += len(word)
        events.x[into] = x0[piece][word] + column
        events.y[into], events.t[into], events.p[into] = y[piece][word], t[piece][word], p[piece][word]
    return events
