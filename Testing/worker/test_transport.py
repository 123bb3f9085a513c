import io
import zlib

import numpy as np
import pytest

from MedSAM3Core.errors import PromptError
from MedSAM3Core.worker import transport
from MedSAM3Core.worker.folder import PrivateFolder
from MedSAM3Core.worker.protocol import (
    MAX_CHUNK,
    MAX_LINE,
    ArrayChunk,
    ArrayRef,
    ArrayStart,
    Ping,
    ProtocolError,
    encode,
)
from MedSAM3Core.worker.transport import ArrayOutlet, Channel, MalformedError, chunks, take


def channel_that_reads(data=b""):
    return Channel(io.BytesIO(data), io.BytesIO())


def on_the_wire(outgoing):
    return b"".join(encode(message) + payload for message, payload in outgoing)


@pytest.mark.parametrize("codec", transport.CODECS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        np.asfortranarray(np.random.default_rng(0).normal(size=(5, 6, 7))),
        np.arange(60, dtype=">u2").reshape(3, 4, 5)[:, ::-2],
        np.random.default_rng(0).random((3, 9, 9)) > 0.5,
        np.ones((2, 3), np.float16),
        np.zeros((0, 4), np.uint8),
        np.float32(3.5).reshape(()),
        np.random.default_rng(0).integers(0, 255, (3, 1024, 1024), dtype=np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_arrive_bit_for_bit(array, codec):
    data = on_the_wire(chunks(array, "w1", codec)) + encode(Ping(id=1))
    channel = channel_that_reads(data)
    assert channel.receive() == Ping(id=1)
    received = take(ArrayRef(stream="w1"), channel, None)
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)
    assert len(channel.arrays) == 0


def test_no_chunk_is_longer_than_its_limit_even_if_nothing_compresses():
    noise = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8)
    for codec in transport.CODECS:
        assert max(len(payload) for _, payload in chunks(noise, "w1", codec)) <= MAX_CHUNK


def test_lines_that_are_too_long_are_skipped():
    data = b"x" * (MAX_LINE + 10) + b"\n" + encode(Ping(id=2))
    channel = channel_that_reads(data)
    with pytest.raises(MalformedError, match="longer than"):
        channel.receive()
    assert channel.receive() == Ping(id=2)


def test_a_refused_box_keeps_its_error_and_its_request():
    line = b'{"type":"segment","id":8,"session":1,"concepts":[],"boxes":[{"i":[9,1],"j":[0,1],"k":[0,0]}]}\n'
    with pytest.raises(MalformedError) as caught:
        channel_that_reads(line).receive()
    assert type(caught.value.fault) is PromptError
    assert caught.value.request_id == 8


@pytest.mark.parametrize("cut", [1, 30, 70, 100])
def test_the_end_in_the_middle_of_a_message_is_the_end(cut):
    data = on_the_wire(chunks(np.zeros(1000, np.uint8), "w1", "zlib"))
    assert cut < len(data)
    with pytest.raises(EOFError):
        channel_that_reads(data[:cut]).receive()


def damaged(**changes):
    payload = changes.pop("payload", zlib.compress(b"\1" * 8))
    chunk = {"stream": "w1", "size": len(payload), "crc32": zlib.crc32(payload), "last": True} | changes
    start = ArrayStart(stream="w1", dtype="|u1", shape=(8,), codec="zlib")
    return on_the_wire([(start, b""), (ArrayChunk(**chunk), payload)])


@pytest.mark.parametrize(
    "data",
    [
        damaged(crc32=1),
        damaged(size=-1),
        damaged(size=MAX_CHUNK + 1),
        damaged(stream="w2"),
        damaged(payload=b"not compressed"),
        damaged(payload=zlib.compress(b"\1" * 7)),
        damaged(payload=zlib.compress(b"\1" * 9)),
        damaged(payload=zlib.compress(b"\0" * (50 << 20))),
        encode(ArrayStart(stream="w1", dtype="O", shape=(8,))),
        encode(ArrayStart(stream="w1", dtype="{'names': 1", shape=(8,))),
        encode(ArrayStart(stream="w1", dtype="|u1", shape=(-8,))),
        encode(ArrayStart(stream="w1", dtype="|u1", shape=(1 << 40,))),
        encode(ArrayStart(stream="w1", dtype="|u1", shape=(0, 1 << 70))),
        encode(ArrayStart(stream="w1", dtype="|u1", shape=(8,), codec="pickle")),
    ],
    ids=range(14),
)
def test_damaged_arrays_are_refused_and_do_not_arrive(data):
    channel = channel_that_reads(data + b"\n" + encode(Ping(id=5)))
    with pytest.raises(MalformedError):
        channel.receive()
    for _ in range(20):  # a wrong size leaves bytes behind that look like lines
        try:
            assert channel.receive() == Ping(id=5)
            break
        except MalformedError:
            continue
    with pytest.raises(ProtocolError, match="did not arrive"):
        take(ArrayRef(stream="w1"), channel, None)


@pytest.mark.skipif("zstd" not in transport.CODECS, reason="zstandard is not installed")
def test_a_small_frame_that_unpacks_to_gigabytes_is_refused():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    start = ArrayStart(stream="w1", dtype="|u1", shape=(64 << 20,), codec="zstd")
    chunk = ArrayChunk(stream="w1", size=len(bomb), crc32=zlib.crc32(bomb), last=True)
    with pytest.raises(MalformedError, match="too large"):
        channel_that_reads(on_the_wire([(start, b""), (chunk, bomb)])).receive()


def test_arrays_nobody_asks_for_do_not_pile_up():
    starts = [ArrayStart(stream=f"w{n}", dtype="|u1", shape=(8,)) for n in range(100)]
    channel = channel_that_reads(b"".join(encode(s) for s in starts))
    with pytest.raises(EOFError):
        channel.receive()
    assert len(channel.arrays) == transport.MAX_WAITING


def test_an_outlet_prefers_the_folder_and_uses_the_pipe_when_it_is_full(tmp_path, monkeypatch):
    folder = PrivateFolder(tmp_path)
    outlet = ArrayOutlet(folder, "zlib", "w")
    array = np.arange(6).reshape(1, 2, 3)
    reference, before = outlet.refer(array)
    assert reference.file
    assert list(before) == []
    np.testing.assert_array_equal(take(reference, channel_that_reads(), folder), array)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    reference, before = outlet.refer(array)
    channel = channel_that_reads(on_the_wire(before) + encode(Ping(id=1)))
    channel.receive()
    np.testing.assert_array_equal(take(reference, channel, folder), array)
    assert [p.name for p in folder.path.iterdir()] == ["lock"]
    folder.discard()


def test_objects_are_never_sent():
    with pytest.raises(ProtocolError, match="object"):
        ArrayOutlet(None, "zlib", "w").refer(np.array([{}, []], dtype=object))
