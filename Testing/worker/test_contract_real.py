"""The library itself behind the worker, with transformers' own classes at a tiny size and random weights.

`medsam3 worker` is started as Slicer starts it. Every answer must be the one that the same session gives in process, to
the last bit: the numbers mean nothing, but nothing may be lost or changed on the way. `test_contract.py` holds what
a session promises beyond that.
"""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from MedSAM3Core import (
    Box,
    Cancelled,
    CancelToken,
    Concept,
    InputError,
    ModelError,
    Point,
    PromptError,
    Segmenter,
)
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.folder import save_model_folder
from MedSAM3Core.models.tokenizer import END, START, PhraseTokenizer
from MedSAM3Core.training.architecture import Architecture, build_model
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker import WorkerClient, convert
from MedSAM3Core.worker.backend import TorchBackend
from MedSAM3Core.worker.protocol import (
    ArrayRef,
    ConceptAsked,
    NeedEvent,
    OpenVolume,
    Segment,
    Segmented,
    SteppedDown,
    encode,
    to_plain,
)
from MedSAM3Core.worker.service import Service
from MedSAM3Core.worker.transport import Channel, chunks

LETTERS = list(bytes_to_unicode().values())
VOCABULARY = [*LETTERS, *(letter + "</w>" for letter in LETTERS), START, END]
TINY = Architecture(
    image_size=64,
    patch_size=8,
    vision_width=32,
    vision_depth=2,
    vision_heads=2,
    window_size=4,
    global_layers=(1,),
    width=128,
    text_width=32,
    text_depth=1,
    vocabulary=len(VOCABULARY),
    encoder_layers=1,
    decoder_layers=1,
    queries=6,
)
LIVER = Concept("liver", "liver", ("liver",), "Liver", "10200004", (221, 130, 101))
SPLEEN = Concept("spleen", "spleen", ("spleen",))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the worker below: sums in another order differ in the last bit, and tiny networks are faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with a space in its path."""
    folder = tmp_path_factory.mktemp("models") / "tiny model"
    tokenizer = PhraseTokenizer({token: number for number, token in enumerate(VOCABULARY)}, [])
    card = ModelCard(
        name="tiny", recommended=Policy(score_rule="semantic", threshold=0.02, mask_threshold=0.02)
    )
    save_model_folder(folder, build_model(TINY), tokenizer, card)
    return str(folder)


@pytest.fixture(scope="module")
def scan():
    k, j, i = np.ogrid[:10, :40, :44]
    body = ((j - 20) / 16.0) ** 2 + ((i - 22) / 18.0) ** 2 < 1
    ball = (k - 5) ** 2 + (j - 18) ** 2 + (i - 25) ** 2 < 40
    noise = np.random.default_rng(5).integers(-20, 20, (10, 40, 44))
    array = np.where(ball, 150, np.where(body, 40, -900)) + noise
    affine = np.array([[-1.0, 0.2, 0, 5], [0.2, -1.0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    return Volume.from_array(array.astype(np.int16), ijk_to_ras=affine, modality="CT", name="phantom")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with WorkerClient(env=environment, temporary=tmp_path_factory.mktemp("worker")) as opened:
        yield opened


@pytest.fixture(scope="module")
def sessions(client, model, scan):
    """The same volume on the same model, in process and behind the worker."""
    segmenter = Segmenter.from_pretrained(model, device="cpu")
    with (
        segmenter.open(scan, precision="float32") as inside,
        client.open(scan, model=model, device="cpu", precision="float32") as outside,
    ):
        yield inside, outside


def assert_same(one, other):
    assert other.geometry.same_grid(one.geometry)
    assert (other.extent, other.concept, other.boxes) == (one.extent, one.concept, one.boxes)
    assert (other.score, other.slice_scores) == (one.score, one.slice_scores)
    np.testing.assert_array_equal(other.to_array(), one.to_array())
    np.testing.assert_array_equal(other.probability_map(), one.probability_map())
    when = {"created": "whenever"}
    assert dataclasses.replace(other.provenance, **when) == dataclasses.replace(one.provenance, **when)
    assert other.timings.keys() == one.timings.keys()


def test_text_gives_the_same(sessions):
    one, other = (session.segment(LIVER) for session in sessions)
    assert one.voxels > 50, "random weights find something, or this test shows nothing"
    assert_same(one, other)
    assert_same(*(session.segment(SPLEEN, threshold=0.9) for session in sessions))
    assert_same(*(session.segment("left kidney") for session in sessions))


def test_several_concepts_give_the_same(sessions):
    for one, other in zip(*(session.segment_many([LIVER, SPLEEN]) for session in sessions), strict=True):
        assert_same(one, other)


def test_boxes_and_hand_edits_give_the_same(sessions):
    first = [session.segment(LIVER, boxes=[Box.on_slice(5, (19, 31), (12, 24))]) for session in sessions]
    assert_same(*first)
    second = [
        session.refine(
            found, boxes=[Box((0, 8), (0, 39), (0, 9), positive=False)], edited_slices=[3], locked_slices=(8,)
        )
        for session, found in zip(sessions, first, strict=True)
    ]
    assert len(second[1].boxes) == 2
    assert_same(*second)


def test_clicks_give_the_same(sessions):
    first = [session.segment(LIVER, points=[Point(25, 18, 5)]) for session in sessions]
    assert first[1].points == (Point(25, 18, 5),)
    assert first[1].anchors == (5,)
    assert_same(*first)
    second = [
        session.refine(found, points=[Point(25, 18, 7), Point(2, 2, 7, positive=False)], propagate=False)
        for session, found in zip(sessions, first, strict=True)
    ]
    assert (second[0].points, second[0].anchors) == (second[1].points, second[1].anchors)
    assert_same(*second)


def test_errors_are_the_same(sessions):
    for session in sessions:
        with pytest.raises(PromptError, match="outside the volume"):
            session.segment(LIVER, boxes=[Box.on_slice(50, (1, 2), (1, 2))])
        with pytest.raises(PromptError, match="expected a score from 0 to 1"):
            session.segment(LIVER, threshold=7.0)
        with pytest.raises(PromptError):
            session.segment("   ")


def test_a_cancel_in_the_middle_leaves_both_usable(sessions):
    for session in sessions:
        token, stages = CancelToken(), []

        def stop(progress, token=token, stages=stages):
            stages.append(progress.stage)
            token.cancel()

        with pytest.raises(Cancelled):
            session.segment(LIVER, progress=stop, cancel=token)
        assert stages
        assert session.segment(LIVER).voxels > 50


def test_settings_and_models_that_cannot_be_are_refused(client, model, scan):
    with pytest.raises(InputError, match="unknown"):
        client.open(scan, model=model, device="cpu", no_such_setting=1)
    with pytest.raises(InputError):
        client.open(scan, model=model, device="cpu", axis="sideways")
    with pytest.raises(ModelError):
        client.open(scan, model=model + " that is not there", device="cpu")


def test_memory_is_reported_and_given_back(client, model, sessions):
    _, session = sessions
    before = session.segment(LIVER)
    report = client.memory()
    assert report.features > 0
    assert report.host_used > 50 << 20
    assert report.models == (f"{model} (cpu)",)
    client.release("features")
    assert client.memory().features == 0
    client.release("model")
    assert client.memory().models == ()
    assert_same(before, session.segment(LIVER))


def test_the_card_comes_along(client, model):
    loaded = client.load_model(model, "cpu")
    assert loaded.card["name"] == "tiny"
    assert len(loaded.card["sha256"]) == 64
    assert loaded.device == "cpu"


def test_the_session_says_how_it_was_opened(sessions):
    facts = sessions[1].facts
    assert facts["model"] == "tiny"
    assert facts["device"] == "cpu"
    assert "axial" in facts["axis"]


def test_the_estimate_covers_what_the_store_really_holds(client, model, scan):
    """And is no fright: not above twice of it. (What a batch takes while it is computed is not measured here.)"""
    from MedSAM3Core.worker.estimate import ModelSizes

    with client.open(scan, model=model, device="cpu", precision="float32", mode="thorough") as session:
        client.release("features")
        needs = []
        client._on_event = lambda event: needs.append(event) if isinstance(event, NeedEvent) else None
        session.segment(LIVER)
        held = client.memory().features
    client._on_event = None
    slice_bytes = ModelSizes(tokens=8, trunk=32, width=128).slice_bytes
    assert held <= slice_bytes * 10 <= 2 * held
    assert needs[0].device == "cpu"
    assert held < needs[0].need < 1 << 30
    assert needs[0].free > 0


class CrampedBackend(TorchBackend):
    """The library on a GPU of injected smallness: its trunk takes at most ``limit`` slices at once."""

    def __init__(self, limit):
        self.limit = limit
        self.devices = []

    def load(self, model, device):
        self.devices.append(device)
        segmenter = super().load(model, "cpu")
        network, trunk = segmenter.model.network, segmenter.model.network.trunk

        def cramped(pixels):
            if device != "cpu" and len(pixels) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return trunk(pixels)

        network.trunk = cramped
        return segmenter


class Recorder:
    """Doubles the server around the service: keeps what is sent, says yes to questions."""

    def __init__(self, wire):
        self.channel = Channel(io.BytesIO(wire), io.BytesIO())
        self.sent, self.asked = [], []

    def send(self, message, payload=b""):
        self.sent.append(message)

    def ask(self, request_id, text, cancel):
        self.asked.append(text)
        return True


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (8, []),
        (2, ["smaller batches"]),
        (1, ["smaller batches", "features in host memory"]),
        (0, ["smaller batches", "features in host memory", "cpu"]),
    ],
)
def test_a_small_gpu_gives_the_same_masks_step_by_step(model, scan, sessions, limit, steps):
    wire = b"".join(encode(message) + payload for message, payload in chunks(scan.array, "c1", "zlib"))
    recorder, backend = Recorder(wire), CrampedBackend(limit)
    with pytest.raises(EOFError):
        recorder.channel.receive()
    service, grid = Service(backend, recorder), convert.grid_of(scan.geometry)
    options = {"precision": "float32"}
    facts = to_plain(convert.facts_of(scan))
    reference = ArrayRef(stream="c1")
    service.handle(
        OpenVolume(
            id=1,
            session=1,
            array=reference,
            grid=grid,
            model=model,
            device="cuda",
            facts=facts,
            options=options,
        ),
        CancelToken(),
    )
    service.handle(Segment(id=2, session=1, concepts=(ConceptAsked(resolved=LIVER),)), CancelToken())
    (result,) = (message.segmentation for message in recorder.sent if isinstance(message, Segmented))
    expected = sessions[0].segment(LIVER)
    assert result.extent == expected.extent
    assert result.slice_scores == pytest.approx(expected.slice_scores, abs=1e-5)
    assert [m.step for m in recorder.sent if isinstance(m, SteppedDown)] == steps
    assert len(recorder.asked) == steps.count("cpu")
    assert backend.devices == (["cuda", "cpu"] if "cpu" in steps else ["cuda"])
