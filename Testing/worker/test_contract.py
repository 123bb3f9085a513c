"""What a session promises, in process and behind the worker: one suite, run against each.

"double" runs the double in process, "worker" and "worker, bytes" behind a real process with files and with bytes.
The same three ways with the library itself and a tiny random model are in `test_contract_real.py`.
"""

import threading

import numpy as np
import pytest
from double_worker import DoubleBackend
from worker_helpers import DOUBLE

from MedSAM3Core.errors import Cancelled, InputError, ModelError, PromptError
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.worker import WorkerClient

WAYS = ("double", "worker", "worker, bytes")


@pytest.fixture(scope="module", params=WAYS)
def open_volume(request, tmp_path_factory):
    """`open_volume(volume, model=..., **options)`, a session of one of the three ways."""
    if request.param == "double":
        backend = DoubleBackend()
        yield lambda volume, model="double", **options: backend.load(model, "auto").open(volume, **options)
        return
    temporary = tmp_path_factory.mktemp("contract")
    with WorkerClient(DOUBLE, temporary=temporary, bytes_only="bytes" in request.param) as client:
        yield lambda volume, model="double", **options: client.open(volume, model=model, **options)
    assert not any(temporary.iterdir())


@pytest.fixture
def session(open_volume, volume):
    opened = open_volume(volume)
    yield opened
    opened.close()


def test_a_segmentation_is_on_the_volumes_own_grid(session, volume):
    found = session.segment("ball")
    assert isinstance(found, Segmentation)
    assert found.geometry.same_grid(volume.geometry)
    np.testing.assert_array_equal(found.to_array(), volume.array > volume.array.mean() + volume.array.std())
    assert found.mask.dtype == bool
    assert found.mask.shape == found.extent.shape
    assert found.probability.dtype == np.float16
    np.testing.assert_array_equal(found.probability_map() > 0.5, found.to_array())


def test_everything_about_it_arrives(session, volume):
    found = session.segment("Ball ", threshold=200)
    assert found.concept == Concept("Ball ", "ball", ("Ball ",))
    assert found.score == 0.5
    assert found.slice_scores.keys() == set(range(12))
    assert found.slice_scores[6] == (volume.array[6] > 200).mean()
    assert found.provenance.thresholds == {"mask": 200.0}
    assert found.provenance.concept == "Ball "
    assert found.timings == {"looking": 0.01}


def test_a_resolved_concept_is_taken_as_it_is(session):
    concept = Concept("Leber", "liver", ("liver",), "Liver", "10200004", (221, 130, 101), ("notice",))
    assert session.segment(concept).concept == concept


def test_nothing_found_is_an_empty_segmentation(session):
    found = session.segment("nothing")
    assert found.empty
    assert found.extent is None
    assert found.mask.shape == (0, 0, 0)
    assert not found.to_array().any()


def test_several_concepts_come_in_the_order_asked_for(session):
    found = session.segment_many(["ball", "nothing", "c"])
    assert [f.concept.phrase for f in found] == ["ball", "nothing", "c"]
    assert [f.empty for f in found] == [False, True, False]
    assert session.segment_many([]) == []


def test_boxes_and_refinements_reach_the_session(session):
    first = session.segment("ball")
    box = Box.on_slice(6, (8, 14), (6, 12))
    refined = session.refine(first, boxes=[box])
    assert refined.boxes == (box,)
    assert (refined.extent.k[0], refined.extent.k[1]) == (6, 6)
    negative = Box((0, 11), (0, 19), (0, 11), positive=False)
    both = session.refine(refined, boxes=[negative])
    assert both.boxes == (box, negative)
    assert 0 < both.voxels < refined.voxels


def test_refining_leaves_the_first_result_as_it_was(session):
    first = session.segment("ball")
    before = first.to_array()
    session.refine(first, boxes=[Box.on_slice(6, (8, 14), (6, 12))])
    np.testing.assert_array_equal(first.to_array(), before)


def test_progress_comes_on_the_callers_thread_and_ends_complete(session):
    seen = []
    session.segment("slow", progress=lambda p: seen.append((threading.get_ident(), p)))
    assert {thread for thread, _ in seen} == {threading.get_ident()}
    fractions = [p.fraction for _, p in seen]
    assert fractions == sorted(fractions)
    assert len(fractions) >= 3
    last = seen[-1][1]
    assert (last.stage, last.step, last.total, last.fraction) == ("looking", 12, 12, 1.0)


def test_a_cancel_stops_the_run_and_leaves_the_session_usable(session):
    token = CancelToken()
    with pytest.raises(Cancelled):
        session.segment("endless", progress=lambda p: token.cancel(), cancel=token)
    with pytest.raises(Cancelled):
        session.segment("endless", cancel=token)
    assert not session.segment("ball").empty


def test_what_a_callback_raises_stops_the_run(session):
    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.segment("endless", progress=fail)
    assert not session.segment("ball").empty


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.segment("  "), PromptError, "empty"),
        (
            lambda s: s.segment("ball", boxes=[Box.on_slice(99, (1, 2), (1, 2))]),
            PromptError,
            "outside the volume",
        ),
        (
            lambda s: s.refine(s.segment("ball"), [Box.on_slice(1, (1, 99), (1, 2))]),
            PromptError,
            "outside the volume",
        ),
        (lambda s: s.segment_many(["ball", ""]), PromptError, "empty"),
    ],
)
def test_errors_are_the_same_and_leave_the_session_usable(session, call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(session)
    assert type(caught.value) is error
    assert not session.segment("ball").empty


def test_what_cannot_be_opened_says_why(open_volume, volume):
    with pytest.raises(InputError, match="sideways"):
        open_volume(volume, axis="sideways")
    with pytest.raises(ModelError, match="unknown") as caught:
        open_volume(volume, model="absent")
    assert caught.value.remedy == "Choose another."


def test_colours_and_single_slices_are_volumes_too(open_volume):
    from MedSAM3Core.volume.volume import Volume

    photo = np.random.default_rng(1).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    session = open_volume(Volume.from_array(photo))
    assert session.segment("ball").to_array().shape == (1, 9, 11)
    session.close()
    session.close()


def test_two_volumes_are_open_side_by_side(open_volume, volume):
    from MedSAM3Core.volume.volume import Volume

    one, other = open_volume(volume), open_volume(Volume.from_array(volume.array[:, ::-1].copy()))
    np.testing.assert_array_equal(one.segment("a").to_array(), other.segment("a").to_array()[:, ::-1])
    one.close()
    assert not other.segment("a").empty
    other.close()


def test_a_closed_session_says_so(open_volume, volume):
    session = open_volume(volume)
    session.close()
    with pytest.raises(PromptError, match="closed"):
        session.segment("ball")
