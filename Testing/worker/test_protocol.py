import contextlib
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedSAM3Core import errors
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Extent, Provenance
from MedSAM3Core.worker import protocol
from MedSAM3Core.worker.protocol import (
    KINDS,
    ArrayRef,
    ConceptAsked,
    Error,
    Grid,
    OpenVolume,
    Ping,
    ProtocolError,
    Refine,
    Segment,
    SegmentationData,
    decode,
    encode,
    error_message,
    exception_of,
    message_id,
)

CONCEPT = Concept(
    "Leber", "liver", ("liver", "hepatic tissue"), "Liver", "10200004", (221, 130, 101), ("a notice",)
)
DATA = SegmentationData(
    CONCEPT,
    Extent((1, 2), (3, 4), (5, 6)),
    ArrayRef(file="c1.npy"),
    ArrayRef(stream="w2"),
    0.5,
    {3: 0.25, 12: 1.0},
    Provenance("Leber", "demo", "ab", "0.1", ("liver",), ("1,2,3,4,5,+",), {"mask": 0.5}, "axial"),
    (Box((1, 2), (3, 4), (5, 5), positive=False),),
    {"encoding": 0.1},
)


@pytest.mark.parametrize(
    "message",
    [
        Refine(
            id=4,
            session=2,
            previous=DATA,
            boxes=DATA.boxes,
            options={"threshold": 0.5, "deep": [1, {"a": None}]},
        ),
        Segment(id=5, session=2, concepts=(ConceptAsked("liver"), ConceptAsked(resolved=CONCEPT)), many=True),
        OpenVolume(
            id=6, session=1, array=ArrayRef(file="c2.npy"), grid=Grid((1, 2, 3), (0.1,) * 16), model="demo"
        ),
    ],
)
def test_a_message_comes_back_as_it_was_sent(message):
    assert decode(encode(message)) == message


def test_every_kind_can_be_sent_and_read():
    samples = {int: 1, str: "x", float: 0.5, bool: True}
    for cls in KINDS.values():
        hints = get_type_hints(cls)
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        values = {name: _sample(hints[name], samples) for name in required}
        assert decode(encode(cls(**values))) == cls(**values)


def _sample(hint, samples):
    if hint in samples:
        return samples[hint]
    known = {
        ArrayRef: ArrayRef(file="c1.npy"),
        Grid: Grid((1, 1, 1), (1.0,) * 16),
        SegmentationData: DATA,
        tuple[ConceptAsked, ...]: (ConceptAsked("liver"),),
        tuple[int, ...]: (1, 2),
    }
    return known[hint]


def test_unknown_fields_are_ignored_and_absent_ones_take_their_default():
    line = json.dumps({"type": "ping", "id": 3, "colour": "blue", "nested": {"type": 1}}).encode()
    assert decode(line) == Ping(id=3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not a message"),
        (b"[1, 2]", "not a message"),
        (b"{", "not a message"),
        (b"\xff\xfe\x00", "not a message"),
        (b"[" * 100_000, "not a message"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not a message"),
        (b'{"id": 1}', "unknown"),
        (b'{"type": ["ping"], "id": 1}', "unknown"),
        (b'{"type": "pickle", "id": 1}', "unknown"),
        (b'{"type": "ping"}', "id"),
        (b'{"type": "ping", "id": "1"}', "expected int"),
        (b'{"type": "ping", "id": true}', "expected int"),
        (b'{"type": "segment", "id": 1, "session": 1, "concepts": "liver"}', "expected a list"),
        (b'{"type": "segment", "id": 1, "session": 1, "concepts": [1]}', "expected an object"),
        (b'{"type": "segment", "id": 1, "session": 1, "concepts": [], "boxes": [{"i": [1]}]}', "expected 2"),
    ],
)
def test_what_is_no_message_is_refused_in_words(line, words):
    with pytest.raises(ProtocolError, match=re.escape(words)):
        decode(line)


def test_a_box_that_cannot_be_is_a_prompt_error():
    line = b'{"type":"segment","id":1,"session":1,"concepts":[],"boxes":[{"i":[9,1],"j":[0,1],"k":[0,0]}]}'
    with pytest.raises(errors.PromptError, match="first <= last"):
        decode(line)


def test_a_refused_line_still_tells_whom_to_answer():
    assert message_id(b'{"type": "unheard of", "id": 17}') == 17
    assert message_id(b'{"type": "ping", "id": "x"}') is None
    assert message_id(b"garbage") is None


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_a_message_or_a_protocol_error(line):
    with contextlib.suppress(errors.MedSAM3Error):
        assert type(decode(line)) in KINDS.values()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_any_field_values_are_a_message_or_a_protocol_error(kind, data):
    names = [f.name for f in fields(KINDS[kind])]
    plain = {name: data.draw(_JSON) for name in names} | {"type": kind}
    with contextlib.suppress(errors.MedSAM3Error):
        assert type(decode(json.dumps(plain).encode())) is KINDS[kind]


def test_a_line_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match="at most"):
        encode(Error(message="x" * protocol.MAX_LINE))


def test_every_error_of_the_library_comes_back_as_itself():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MedSAM3Error)]
    assert len(classes) >= 9
    for cls in classes:
        fault = exception_of(decode(encode(error_message(cls("What is wrong.", "What to do."), 3))))
        assert type(fault) is cls
        assert (fault.message, fault.remedy) == ("What is wrong.", "What to do.")


def test_foreign_errors_become_ours_and_name_themselves():
    fault = exception_of(error_message(KeyError("liver"), 3))
    assert type(fault) is errors.WorkerError
    assert "KeyError" in fault.message
    assert type(exception_of(error_message(MemoryError(), 3))) is errors.ResourceError
    assert type(exception_of(Error(error="ErrorOfTheFuture", message="x"))) is errors.WorkerError
    assert type(exception_of(Error(error="Exception", message="x"))) is errors.WorkerError


def test_the_document_names_every_message_and_every_field():
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for name, cls in KINDS.items():
        assert f"`{name}`" in text
        for field in fields(cls):
            assert f"`{field.name}`" in text, f"{name}.{field.name} is not documented"
