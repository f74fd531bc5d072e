"""Events from sources that do not end, a growing file and a UDP port, as records of 8 bytes.

A record is two little-endian 32-bit numbers: the time in microseconds, which starts again at 0 every 2^32 us (71.6
minutes), and x in bits 0-13, y in bits 14-27, p in bits 28-31: the CD events of Prophesee's DAT files without their
header (docs.prophesee.ai, "DAT file format").
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor, check_events, checked

RECORD = np.dtype([("t", "<u4"), ("place", "<u4")])
LARGEST = Sensor(1 << 4, 1 << 14, 1 << 14)  # what a record has bits for

_WRAP = 1 << 32
_DATAGRAM = 65535  # the largest that UDP has


def events_to_records(events: Events) -> npt.NDArray[np.void]:
    """Events as records, ``RECORD`` (E,); raises ``ValueError`` as :func:`tbnn.data.check_events`.

    >>> e = Events(x=np.array([1]), y=np.array([2]), t=np.array([2**32 + 5]), p=np.array([1]))
    >>> events_to_records(e).tolist()
    [(5, 268468225)]
    """
    x, y, t, p = (column.astype(np.uint64) for column in checked(events, LARGEST, "events_to_records"))
    records = np.empty(len(events), RECORD)
    records["t"] = t % _WRAP
    records["place"] = x | y << np.uint64(14) | p << np.uint64(28)
    return records


def records_to_events(records: npt.NDArray[np.void], after: int | None = None) -> Events:
    """Records, ``RECORD`` (E,), as events whose times go on after the time ``after``.

    A time is taken as the nearest one to the time before it that is equal modulo 2^32 us: across a wrap times go on
    rising. A silence of 2^31 us (35.8 minutes) or more looks like a step back.

    >>> r = np.array([(2**32 - 1, 0), (4, 1 << 14)], RECORD)
    >>> records_to_events(r).t.tolist(), records_to_events(r, after=2**32 - 7).y.tolist()
    ([4294967295, 4294967300], [0, 1])
    """
    place = records["place"]
    t = records["t"].astype(np.int64)
    if len(t):
        steps = np.diff(t, prepend=t[0] if after is None else after)
        half = _WRAP // 2
        t = (t[0] if after is None else after) + np.cumsum((steps + half) % _WRAP - half)
    low = np.uint32((1 << 14) - 1)
    x, y = (place & low).astype(np.uint16), (place >> np.uint32(14) & low).astype(np.uint16)
    return Events(x=x, y=y, t=t, p=(place >> np.uint32(28)).astype(np.uint8))


def tail_events(
    path: str | Path,
    *,
    poll: float = 0.05,
    stop: Callable[[], bool] | None = None,
    timeout: float | None = None,
    offset: int = 0,
    max_events: int = 1 << 16,
) -> Iterator[Events]:
    """Follow a growing file of records: what it holds, then what is appended, at most ``max_events`` at a time.

    A record that is written only in part waits for its rest.

    Args:
        path: the file, which must exist.
        poll: seconds between looks at a file that does not grow.
        stop: ends the stream when it returns True, after the whole records that the file holds then.
        timeout: seconds without a new record that end the stream.
        offset: bytes of a header to pass over.
        max_events: the most events in a piece.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file became shorter or another one took its name, or times run backward.
    """
    last, done = None, 0
    with Path(path).open("rb", buffering=0) as file:
        file.seek(offset)
        heard, rest, end = time.monotonic(), b"", None
        while True:
            if end is None and stop is not None and stop():
                end = os.fstat(file.fileno()).st_size
            size = os.fstat(file.fileno()).st_size
            if size < file.tell():
                raise ValueError(f"{path}: expected a file that grows, got {size} bytes after {file.tell()} were read")
            room = max_events * RECORD.itemsize - len(rest)
            data = rest + (file.read(room if end is None else min(room, max(end - file.tell(), 0))) or b"")
            whole = len(data) // RECORD.itemsize * RECORD.itemsize
            rest = data[whole:]
            if whole:
                events = records_to_events(np.frombuffer(data[:whole], RECORD), last)
                _check_order(events.t, last, f"{path}: record {done}")
                last, done, heard = int(events.t[-1]), done + len(events), time.monotonic()
                yield events
            elif end is not None or (timeout is not None and time.monotonic() - heard >= timeout):
                return
            else:
                _check_same(path, file.fileno())
                time.sleep(poll)


def _check_same(path: str | Path, descriptor: int) -> None:
    """Raise unless ``path`` is still the open file."""
    try:
        same = os.path.samestat(Path(path).stat(), os.fstat(descriptor))
    except FileNotFoundError:
        same = False
    if not same:
        raise ValueError(f"{path}: expected one file that grows, but it was removed or another one took its name")


def _check_order(t: npt.NDArray[np.integer], last: int | None, where: str) -> None:
    before = t[0] if last is None else last
    backward = np.flatnonzero(np.diff(t, prepend=before) < 0)
    if backward.size:
        i = int(backward[0])
        raise ValueError(f"{where} + {i}: expected times in order, got {t[i]} after {t[i - 1] if i else before}")


def udp_events(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    sensor: tuple[int, int, int] = LARGEST,
    bad: str = "skip",
    poll: float = 0.05,
    stop: Callable[[], bool] | None = None,
    timeout: float | None = None,
    buffer: int = 1 << 20,
) -> "UdpEvents":
    """Listen for datagrams of records: an iterator of the events of each, which the port receives from now on.

    UDP promises nothing: datagrams that find the buffer full are lost, and nobody is told. A datagram is bad that holds
    no whole number of records or none, events outside the ``sensor``, or times before those of the last good one: that
    of a sender that starts anew is, too.

    Args:
        host: address to listen on; the default hears only this machine.
        port: 0 lets the system choose, see :attr:`UdpEvents.address`.
        sensor: (C, H, W) that the events must fit; default: whatever a record can hold.
        bad: what becomes of bad datagrams: "skip" (counted in :attr:`UdpEvents.skipped`) or "error".
        poll: seconds after which a silent port asks ``stop`` again.
        stop: ends the stream when it returns True.
        timeout: seconds without a good datagram that end the stream.
        buffer: bytes of datagrams that the system may keep for us (it rounds this, and has a limit of its own).

    Raises:
        ValueError: an unknown ``bad``; when iterating, a bad datagram with ``bad="error"``.
        OSError: the address cannot be had.
    """
    return UdpEvents(host, port, Sensor(*sensor), bad, poll, stop, timeout, buffer)


class UdpEvents(Iterator[Events]):
    """The events that a UDP port receives, see :func:`udp_events`; the end of ``with``, of the stream and errors close it.

    Attributes:
        address: (host, port) where it listens.
        received: number of good datagrams.
        skipped: number of bad ones.
    """

    def __init__(
        self,
        host: str,
        port: int,
        sensor: Sensor,
        bad: str,
        poll: float,
        stop: Callable[[], bool] | None,
        timeout: float | None,
        buffer: int,
    ) -> None:
        if bad not in ("skip", "error"):
            raise ValueError(f"udp_events: expected bad datagrams to skip or error, got {bad!r}")
        self._sensor, self._bad, self._stop, self._timeout = sensor, bad, stop, timeout
        self._last: int | None = None
        self.received = self.skipped = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.settimeout(poll)
            self._socket.bind((host, port))
            self.address: tuple[str, int] = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise

    def __next__(self) -> Events:
        heard = time.monotonic()
        try:
            while self._socket.fileno() >= 0 and not (self._stop is not None and self._stop()):
                try:
                    data, sender = self._socket.recvfrom(_DATAGRAM)
                    return self._events(data, sender)
                except TimeoutError:
                    pass
                except ValueError:
                    if self._bad == "error":
                        raise
                    self.skipped += 1
                if self._timeout is not None and time.monotonic() - heard >= self._timeout:
                    break
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def _events(self, data: bytes, sender: tuple[str, int]) -> Events:
        where = f"udp {self.address[0]}:{self.address[1]}: datagram from {sender[0]}:{sender[1]}"
        if not data or len(data) % RECORD.itemsize:
            raise ValueError(f"{where}: expected records of {RECORD.itemsize} bytes, got {len(data)} bytes")
        events = records_to_events(np.frombuffer(data, RECORD), self._last)
        _check_order(events.t, self._last, f"{where}: record 0")
        check_events(events, self._sensor, where)
        self._last = int(events.t[-1])
        self.received += 1
        return events

    def close(self) -> None:
        """Give the port back; the iterator then ends."""
        self._socket.close()

    def __enter__(self) -> "UdpEvents":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def send_udp(events: Events, address: tuple[str, int], *, records: int = 180, pause: float = 0.0) -> int:
    """Send events as datagrams of at most ``records`` records (180 fit an Ethernet frame); returns how many were sent.

    ``pause`` seconds pass between them: without, a fast sender overruns the receiver's buffer. Raises ``ValueError``
    as :func:`events_to_records`, and for ``records`` outside 1 .. 8188, what a datagram holds.
    """
    if not 1 <= records <= 8188:
        raise ValueError(f"send_udp: expected 1 to 8188 records a datagram, got {records}")
    data = events_to_records(events)
    starts = range(0, len(data), records)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for start in starts:
            sender.sendto(data[start : start + records].tobytes(), address)
            if pause:
                time.sleep(pause)
    return len(starts)
