"""Streams of events: equal to the whole recording, bounded, and clear about what they refuse."""

import doctest
import re
import socket
import threading
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbnn.data.live
import tbnn.data.streaming
from tbnn.data.events import Events
from tbnn.data.frames import FrameSpec, events_to_words
from tbnn.data.live import RECORD
from tbnn.data.streaming import (
    FrameStream,
    events_to_records,
    records_to_events,
    send_udp,
    stream_frames,
    tail_events,
    udp_events,
)

SENSOR = (2, 3, 7)


def random_events(rng, count, sensor=SENSOR, last=300, base=0):
    x, y, p = (rng.integers(0, side, count) for side in (sensor[2], sensor[1], sensor[0]))
    return Events(x, y, base + np.sort(rng.integers(0, last, count)), p)


def part(events, start, end):
    return Events(*(getattr(events, name)[start:end] for name in "xytp"))


def joined(pieces):
    pieces = list(pieces)
    return Events(*(np.concatenate([getattr(e, name) for e in pieces]) for name in "xytp"))


def pieces_of(events, cuts):
    return [part(events, a, b) for a, b in pairwise([0, *sorted(cuts), len(events)])]


@st.composite
def endless_specs(draw):
    side = st.integers(1, 40)
    spec = {draw(st.sampled_from(["bin_width", "count"])): draw(side), "hop": draw(st.none() | side), "steps": 1}
    spec |= {"polarity": draw(st.sampled_from(["channels", "merge"])), "late": "cut"}
    spec["start"] = draw(st.sampled_from(["zero", "first"]))
    kind = draw(st.sampled_from(["bits", "at_least", "planes", "tau"]))
    if kind == "tau":
        spec |= {"tau": draw(st.floats(10, 100)), "level": draw(st.floats(0.05, 0.8))}
    elif kind != "bits":
        spec[kind] = draw(st.integers(2, 4))
    if draw(st.booleans()):
        spec["size"] = (2, 3)
    return FrameSpec(**spec)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data(), endless_specs())
def test_any_cut_of_the_stream_gives_the_frames_of_the_whole(data, spec):
    sensor = data.draw(st.sampled_from([SENSOR, (1, 2, 300), (1, 3, 70_000)]))
    events = random_events(np.random.default_rng(data.draw(st.integers(0, 999))), data.draw(st.integers(1, 80)), sensor)
    stream = FrameStream(sensor, spec)
    for _ in range(2):  # after a flush the same recording again
        cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8))
        rows = [stream.push(piece) for piece in pieces_of(events, cuts)]
        complete = stream.frame
        rows = np.concatenate([*rows, stream.flush()])
        assert len(rows) == spec.replace(steps=10**6).covered(events.t)
        whole = events_to_words(events, sensor, spec.replace(steps=len(rows)))
        np.testing.assert_array_equal(rows, whole)
    # No frame waits that no later event can fall into.
    if spec.bin_width is not None:
        start = events.t[0] if spec.start == "first" else 0
        assert complete * spec.stride + spec.bin_width > events.t[-1] - start
    else:
        assert complete * spec.stride + spec.count > len(events)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.data(), endless_specs(), st.integers(0, 5))
def test_skipped_gaps_leave_out_empty_frames_only(data, spec, max_gap):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    bursts = [random_events(rng, 5, last=20, base=i * data.draw(st.integers(1, 3000))) for i in range(3)]
    events = joined(sorted(bursts, key=lambda e: e.t[0]))
    events = Events(events.x, events.y, np.sort(events.t), events.p)
    rows = []
    for cuts in ([], range(1, len(events)), data.draw(st.lists(st.integers(0, len(events)), max_size=5))):
        stream = FrameStream(SENSOR, spec, max_gap=max_gap, gap="skip")
        rows.append(np.concatenate([*(stream.push(piece) for piece in pieces_of(events, cuts)), stream.flush()]))
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    whole = events_to_words(events, SENSOR, spec.replace(steps=spec.replace(steps=10**6).covered(events.t)))
    if spec.count is not None:
        np.testing.assert_array_equal(rows[0], whole)
        return
    # The frames without an event, run by run, are cut to max_gap.
    start, reach = (events.t[0] if spec.start == "first" else 0), spec.bin_width if spec.tau is None else spec.horizon
    kept, run = [], 0
    for k in range(len(whole)):
        end = start + k * spec.stride + spec.bin_width
        holds = bool(((events.t >= end - reach) & (events.t < end)).any())
        run = 0 if holds else run + 1
        # Frames after the last event wait for the next one, which decides: flush gives them all.
        if run <= max_gap or end > events.t[-1]:
            kept.append(k)
    np.testing.assert_array_equal(rows[0], whole[kept])


def test_gap_of_hours_is_an_error_or_is_skipped_and_the_stream_goes_on():
    early = random_events(np.random.default_rng(0), 20, last=50)
    late = Events(early.x, early.y, early.t + 3 * 3600 * 10**6, early.p)
    spec = FrameSpec(bin_width=10, steps=1)
    stream = FrameStream(SENSOR, spec, where="camera")
    first = stream.push(early)
    gap = (late.t[0] // 10) - (early.t[-1] // 10) - 1
    message = f"camera: expected at most 1000 frames without events, got {gap} between {early.t[-1]} and {late.t[0]}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        stream.push(late)
    near = Events(early.x, early.y, early.t + 50, early.p)
    rows = np.concatenate([first, stream.push(near), stream.flush()])  # as if the refused push had not been
    np.testing.assert_array_equal(
        rows, events_to_words(joined([early, near]), SENSOR, FrameSpec(bin_width=10, steps=10))
    )
    stream = FrameStream(SENSOR, spec, max_gap=7, gap="skip")
    rows = [len(stream.push(early)), len(stream.push(late))]
    assert rows == [early.t[-1] // 10, 1 + 7 + (late.t[-1] // 10 - late.t[0] // 10)]
    assert stream.skipped == gap - 7
    assert stream.frame == late.t[-1] // 10
    with pytest.raises(ValueError, match="got 1080000001 between the start and 10800000010"):
        FrameStream(SENSOR, spec).push(Events(*(np.array([v]) for v in (0, 0, 10_800_000_010, 0))))


@pytest.mark.parametrize(
    "settings", [{"bin_width": 40}, {"bin_width": 40, "hop": 3}, {"bin_width": 40, "hop": 3, "planes": 2}]
)
def test_crowded_frames_are_refused_or_keep_their_newest_events(settings):
    events = random_events(np.random.default_rng(1), 120)
    spec = FrameSpec(**settings, steps=1, late="cut")
    rows = []
    for cuts in ([], range(1, 120), [50]):
        with pytest.raises(ValueError, match="stream_frames: expected at most 6 events in a frame, got "):
            np.concatenate(list(stream_frames(pieces_of(events, cuts), SENSOR, spec, max_events=6)))
        stream = FrameStream(SENSOR, spec, max_events=6, overflow="drop")
        rows.append(np.concatenate([*(stream.push(piece) for piece in pieces_of(events, cuts)), stream.flush()]))
    for k, row in enumerate(rows[0]):
        inside = np.flatnonzero((events.t >= k * spec.stride) & (events.t < k * spec.stride + 40))[-6:]
        newest = Events(*(getattr(events, name)[inside] for name in "xytp"))
        one = FrameSpec(bin_width=1000, steps=1, planes=spec.planes)
        expected = events_to_words(newest, SENSOR, one)[0] if len(inside) else 0
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_limits_are_reached_before_they_are_passed():
    """Exactly max_gap empty frames pass, and a crowd is refused while its frame still waits for its end."""
    spec = FrameSpec(bin_width=10, steps=1)

    def times(*t):
        return Events(*np.zeros((2, len(t)), int), np.array(t), np.zeros(len(t), int))

    stream = FrameStream(SENSOR, spec, max_gap=3, max_events=2)
    assert (len(stream.push(times(5))), len(stream.push(times(45)))) == (0, 4)
    with pytest.raises(ValueError, match="at most 3 frames without events, got 4 between 45 and 95"):
        stream.push(times(95))
    assert len(stream.push(times(46))) == 0
    with pytest.raises(ValueError, match="expected at most 2 events in a frame, got 3"):
        stream.push(times(47))
    assert len(stream.push(times(50))) == 1


@pytest.mark.parametrize(
    "spec",
    [
        FrameSpec(bin_width=1000, steps=1),
        FrameSpec(bin_width=1000, hop=100, steps=1),
        FrameSpec(bin_width=1000, steps=1, tau=5000.0, level=0.2),
        FrameSpec(count=300, hop=20, steps=1, tau=500.0, level=0.2),
    ],
)
def test_memory_does_not_grow_with_the_stream(spec):
    rng = np.random.default_rng(0)
    stream, peaks = FrameStream(SENSOR, spec), []
    pieces = [random_events(rng, 200, last=1000) for _ in range(20)]
    tracemalloc.start()
    for k in range(600):
        piece = pieces[k % 20]
        stream.push(Events(piece.x, piece.y, piece.t + 1000 * k, piece.p))
        if k % 200 == 199:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert peaks[2] <= 1.1 * peaks[0] < 100_000


def test_what_a_stream_refuses():
    spec = FrameSpec(bin_width=10, steps=1)
    with pytest.raises(ValueError, match="expected a spec with bin_width or count, got bins"):
        FrameStream(SENSOR, FrameSpec(bins=3))
    with pytest.raises(ValueError, match="expected max_events of at least 9 and max_gap of 0 or more, got 8, 1000"):
        FrameStream(SENSOR, FrameSpec(count=9, steps=1), max_events=8)
    with pytest.raises(ValueError, match="expected overflow error or drop and gap error or skip, got error, wait"):
        FrameStream(SENSOR, spec, gap="wait")
    stream = FrameStream(SENSOR, spec)
    events = random_events(np.random.default_rng(0), 9)
    stream.push(events)
    with pytest.raises(ValueError, match=f"event 0: expected times in order over pushes, got 0 after {events.t[-1]}$"):
        stream.push(Events(*(np.array([0]) for _ in "xytp")))
    with pytest.raises(ValueError, match=r"event 0: expected x in 0\.\.6, got 7"):
        stream.push(Events(*(np.array([v]) for v in (7, 0, 400, 0))))
    assert stream.push(part(events, 0, 0)).shape == (0, 2)


def test_stream_frames_ends_with_the_frames_begun():
    events = random_events(np.random.default_rng(0), 50)
    rows = list(stream_frames(pieces_of(events, range(0, 50, 3)), SENSOR, FrameSpec(bin_width=100, steps=1)))
    assert all(len(words) for words in rows)
    np.testing.assert_array_equal(
        np.concatenate(rows), events_to_words(events, SENSOR, FrameSpec(bin_width=100, steps=3))
    )
    assert list(stream_frames([], SENSOR, FrameSpec(bin_width=100, steps=1))) == []


def test_examples_run():
    for module in (tbnn.data.live, tbnn.data.streaming):
        result = doctest.testmod(module, extraglobs={"np": np, **vars(module)})
        assert (result.failed, result.attempted > 2) == (0, True)


# Records


def same(a, b):
    for name in "xytp":
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_records_are_the_words_of_a_dat_file():
    events = Events(np.array([16383, 5]), np.array([1, 16383]), np.array([7, 2**32 + 1]), np.array([1, 15]))
    records = events_to_records(events)
    little = records.tobytes()
    assert little[:8] == (7).to_bytes(4, "little") + (16383 | 1 << 14 | 1 << 28).to_bytes(4, "little")
    # 2^32 us from one event to the next are too many to be seen.
    same(records_to_events(records), Events(events.x, events.y, np.array([7, 1]), events.p))
    with pytest.raises(ValueError, match=r"events_to_records: event 0: expected x in 0\.\.16383, got 16384"):
        events_to_records(Events(*(np.array([v]) for v in (16384, 0, 0, 0))))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30), st.data())
def test_times_go_on_over_wraps(steps, data):
    t = 2**32 - 9 + np.cumsum(steps)
    zeros = np.zeros(len(t), int)
    records = events_to_records(Events(zeros, zeros, t, zeros))
    last, got = 2**32 - 9, []
    for a, b in pairwise([0, *sorted(data.draw(st.lists(st.integers(0, len(t)), max_size=4))), len(t)]):
        if b > a:
            got.append(records_to_events(records[a:b], after=last).t)
            last = int(got[-1][-1])
    np.testing.assert_array_equal(np.concatenate(got), t)


# A growing file


def test_tail_follows_a_growing_file_with_records_in_parts(tmp_path):
    events = random_events(np.random.default_rng(0), 1000, last=10**6, base=2**32 - 500_000)
    data, path = events_to_records(events).tobytes(), tmp_path / "live.raw"
    path.write_bytes(b"head" + data[:805])
    done = threading.Event()

    def write():
        with path.open("ab", buffering=0) as file:
            for start in range(805, len(data), 333):
                file.write(data[start : start + 333])
                time.sleep(0.002)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    pieces = list(tail_events(path, poll=0.001, stop=done.is_set, timeout=20, offset=4, max_events=70))
    writer.join()
    assert max(map(len, pieces)) == 70
    same(joined(pieces), events)


def test_tail_ends_after_silence_and_leaves_a_part_of_a_record(tmp_path):
    path = tmp_path / "live.raw"
    path.write_bytes(events_to_records(random_events(np.random.default_rng(0), 3)).tobytes()[:-1])
    assert [len(e) for e in tail_events(path, poll=0.001, timeout=0.01)] == [2]
    assert [len(e) for e in tail_events(path, poll=0.001, stop=lambda: True)] == [2]


def test_tail_tells_a_file_that_shrinks_is_replaced_or_runs_backward(tmp_path):
    path, records = tmp_path / "live.raw", events_to_records(random_events(np.random.default_rng(0), 9))
    path.write_bytes(records.tobytes())
    tail = tail_events(path, poll=0.001, timeout=20)
    assert len(next(tail)) == 9
    path.write_bytes(records[:2].tobytes())
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected a file that grows, got 16 bytes after 72 were")):
        next(tail)
    for change in (path.unlink, lambda: (tmp_path / "new").rename(path)):
        path.write_bytes(records.tobytes())
        (tmp_path / "new").write_bytes(records.tobytes())
        tail = tail_events(path, poll=0.001, timeout=20)
        next(tail)
        change()
        with pytest.raises(ValueError, match="it was removed or another one took its name"):
            next(tail)
    path.write_bytes(records[::-1].tobytes())
    times = records["t"][::-1]
    with pytest.raises(ValueError, match=f"record 0 \\+ 1: expected times in order, got {times[1]} after {times[0]}"):
        next(tail_events(path))
    with pytest.raises(FileNotFoundError):
        next(tail_events(tmp_path / "none"))


# A UDP port on the loopback


def test_udp_brings_every_event_to_the_frames():
    events = random_events(np.random.default_rng(0), 3000, last=60_000)
    spec = FrameSpec(bin_width=1000, steps=60)
    got = []
    with udp_events(timeout=20, stop=lambda: sum(map(len, got)) == len(events), poll=0.01) as source:

        def send():
            for start in range(0, len(events), 300):  # the next burst once this one has come: nothing is lost
                assert send_udp(part(events, start, start + 300), source.address, records=100) == 3
                while sum(map(len, got)) < start + 300:
                    time.sleep(0.001)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()

        def listened():
            for piece in source:
                got.append(piece)
                yield piece

        words = np.concatenate(list(stream_frames(listened(), SENSOR, spec)))
        sender.join(20)
    assert (source.received, source.skipped) == (30, 0)
    np.testing.assert_array_equal(words, events_to_words(events, SENSOR, spec)[: len(words)])
    assert len(words) == events.t[-1] // 1000 + 1


def test_udp_counts_or_tells_bad_datagrams_and_closes():
    event = random_events(np.random.default_rng(0), 1, base=100)
    outside = events_to_records(Events(*(np.array([v]) for v in (7, 0, 500, 0)))).tobytes()
    backward = np.array([(0, 0)], RECORD).tobytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        source = udp_events(sensor=SENSOR, timeout=0.05, poll=0.01)
        good = events_to_records(event).tobytes()
        for data in (b"", b"123", good, outside, backward, good + b"1", good):
            sender.sendto(data, source.address)
        assert sum(map(len, source)) == 2
        assert (source.received, source.skipped) == (2, 5)
        assert next(source, None) is None  # closed, and stays so
        for data, message in (
            (b"123", "expected records of 8 bytes, got 3 bytes"),
            (outside, r"event 0: expected x in 0\.\.6, got 7"),
        ):
            source = udp_events(sensor=SENSOR, bad="error", timeout=20)
            sender.sendto(data, source.address)
            with pytest.raises(ValueError, match=rf"^udp 127\.0\.0\.1:\d+: datagram from 127\.0\.0\.1:\d+: {message}"):
                next(source)
    with pytest.raises(ValueError, match="expected bad datagrams to skip or error, got 'drop'"):
        udp_events(bad="drop")
    with pytest.raises(ValueError, match="expected 1 to 8188 records a datagram, got 9000"):
        send_udp(event, ("127.0.0.1", 9), records=9000)
