"""Addresses, keys, what leaves, pictures and measures: the parts that need no conversation."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest
from agent_doubles import VALUES, ValueSession, ct
from PIL import Image

from MedSAM3Core.agent.disclosure import ImageKind, disclose
from MedSAM3Core.agent.endpoint import Endpoint, Key, find_key
from MedSAM3Core.agent.facts import MeasureKind, Question, Target
from MedSAM3Core.agent.machine import keep_slices
from MedSAM3Core.agent.measures import answer, longest_distance_mm
from MedSAM3Core.agent.pictures import choose_slices, disagreement
from MedSAM3Core.agent.planning import plan_by_words
from MedSAM3Core.agent.run import picture_maker
from MedSAM3Core.agent.scoring import count_fit, internal_score, object_count
from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import InputError, PromptError
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import Volume
from MedSAM3Core.windowing import choose_window


@pytest.mark.parametrize(
    ("typed", "url", "local"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1", True),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1", True),
        ("http://[::1]:80/v1", "http://[::1]:80/v1", True),
        ("https://api.openai.com/v1", "https://api.openai.com/v1", False),
        ("http://localhost.evil.example/v1", "http://localhost.evil.example/v1", False),
    ],
)
def test_addresses(typed, url, local):
    endpoint = Endpoint.parse(typed, "m")
    assert (endpoint.url, endpoint.is_local) == (url, local)


@pytest.mark.parametrize(
    "typed", ["", "host", "ftp://host", "http://", "http://host:99999/v1", "http://u:p@host/v1"]
)
def test_addresses_that_cannot_be_used(typed):
    with pytest.raises(InputError) as caught:
        Endpoint.parse(typed, "m")
    assert "u:p" not in str(caught.value)


def test_a_providers_key_goes_to_that_provider_only():
    variables = {"OPENAI_API_KEY": "sk-openai", "GEMINI_API_KEY": "gem"}
    ours = Endpoint.parse("https://api.openai.com/v1", "m")
    assert find_key(ours, variables).reveal() == "sk-openai"
    for other in (
        "https://api.openai.com.evil.example/v1",
        "http://localhost:1/v1",
        "https://example.org/v1",
    ):
        assert find_key(Endpoint.parse(other, "m"), variables) is None
    assert find_key(ours, {**variables, "MEDSAM3_AGENT_KEY": "mine"}).reveal() == "mine"


def test_the_keyring_is_asked_last(monkeypatch):
    asked = []
    keyring = types.ModuleType("keyring")
    keyring.get_password = lambda service, host: asked.append((service, host)) or "from the ring"
    errors = types.ModuleType("keyring.errors")
    errors.KeyringError = RuntimeError
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    endpoint = Endpoint.parse("http://gpu:8000/v1", "m")
    assert find_key(endpoint, {"MEDSAM3_AGENT_KEY": "x"}).reveal() == "x"
    assert asked == []
    assert find_key(endpoint, {}).reveal() == "from the ring"
    assert asked == [("medsam3-agent", "gpu:8000")]
    keyring.get_password = lambda *_: (_ for _ in ()).throw(RuntimeError("locked"))
    assert find_key(endpoint, {}) is None


def test_a_key_does_not_show():
    key = Key("sk-1234")
    assert "sk-1234" not in f"{key} {key!r} {[key]}"
    assert key.hide_in("bad sk-1234") == "bad ***"


def test_what_leaves_is_said_with_its_risks():
    far = Endpoint.parse("http://gpu.example:8000/v1", "m")
    lines = " ".join(disclose(far, "liver", ImageKind(is_2d=True, is_rgb=True), 3, 4).lines())
    assert "without encryption" in lines
    assert "burned into the pixels" in lines
    assert "another machine" in lines
    near = Endpoint.parse("http://localhost:1/v1", "m", pictures=False)
    lines = " ".join(disclose(near, "liver", ImageKind(), 3, 4).lines())
    assert "No picture is sent" in lines
    assert "Warning" not in lines


def test_a_dicom_file_that_says_burned_in_is_heeded(tmp_path):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(str(tmp_path / "a.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
    file.BurnedInAnnotation = "YES"
    file.save_as(tmp_path / "a.dcm")
    kind = ImageKind(modality="CT", files=(tmp_path / "a.dcm",))
    lines = " ".join(disclose(Endpoint.parse("http://localhost:1", "m"), "liver", kind, 3, 4).lines())
    assert "says that text is burned" in lines


# Pictures ------------------------------------------------------------------------------------------------------------


def test_pictures_show_the_mask_and_boxes_come_back_to_voxels(large_pictures):
    session = ValueSession()
    found = session.segment("liver")
    maker = picture_maker(session, 4)
    shown = maker.look_at(found, None, choose_window(session.volume, "liver"))
    assert 1 <= len(shown) <= 4
    assert len({p.sha256 for p in shown}) == len(shown)
    picture = next(p for p in shown if found.to_array()[p.slice_index].any())
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)), np.int16)
    amber = (pixels[..., 0] - pixels[..., 2] > 60).mean()
    assert 0.02 < amber < 0.6
    box = Box.on_slice(picture.slice_index, (5, 24), (5, 19))
    assert maker.box(picture, tuple(map(float, maker.corners(box))), True) == box


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_corners_and_boxes_agree_on_every_axis(axis):
    from MedSAM3Core.agent.facts import Picture
    from MedSAM3Core.agent.pictures import PictureMaker

    maker = PictureMaker(ct(), SlicePlan.for_volume(ct(), axis))
    ends = {
        "axial": ((3, 9), (4, 8), (5, 5)),
        "coronal": ((3, 9), (4, 4), (5, 8)),
        "sagittal": ((3, 3), (4, 8), (5, 8)),
    }
    box = Box(*ends[axis])
    place = {"axial": 5, "coronal": 4, "sagittal": 3}[axis]
    picture = Picture(1, b"", "", (1, 1), place)
    assert maker.box(picture, tuple(map(float, maker.corners(box))), True) == box


def test_slices_where_score_and_mask_disagree_are_shown():
    found = ValueSession().segment("liver")
    scores = dict(found.slice_scores)
    scores[11] = 0.99  # sure of a slice in which nothing was drawn
    import dataclasses

    found = dataclasses.replace(found, slice_scores=scores)
    plan = SlicePlan.for_volume(ct())
    assert int(disagreement(found, None, plan).argmax()) == plan.grid_slice(11)
    assert plan.grid_slice(11) in choose_slices(found, None, plan, 4)


# Scores and measures -------------------------------------------------------------------------------------------------


def blocks(*places, shape=(10, 20, 20), spacing=(1.0, 1.0, 2.0)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    volume = Volume.from_array(np.zeros(shape, np.int16), spacing=spacing)
    return Segmentation.from_mask(resolve("kidney"), volume.geometry, mask, score=0.8), volume


def test_an_expected_number_of_objects_lowers_the_score_of_scattered_masks():
    one = np.s_[2:4, 2:6, 2:6]
    two = np.s_[6:8, 10:14, 10:14]
    found, _ = blocks(one, two)
    assert object_count(found) == 2
    assert count_fit(found, 1) == 0.5
    assert count_fit(found, 2) == 1
    assert internal_score(found, Target(resolve("kidney"), 1)) == pytest.approx(0.4)
    assert internal_score(blocks()[0], Target(resolve("kidney"))) == 0


def test_the_longest_line_is_in_millimetres():
    found, _ = blocks(np.s_[0:4, 0:1, 0:1])
    assert longest_distance_mm(found) == pytest.approx(6.0)
    found, _ = blocks(np.s_[0:1, 0:4, 0:5])
    assert longest_distance_mm(found) == pytest.approx(5.0)
    found, _ = blocks(np.s_[0:10, :, :], shape=(10, 40, 40))
    assert longest_distance_mm(found) == pytest.approx(np.sqrt(39**2 + 39**2 + 18**2))


def test_shares_and_slices_and_intensity():
    found, volume = blocks(np.s_[2:4, 2:6, 2:6])
    whole, _ = blocks(np.s_[2:6, 2:6, 2:6])
    plan = SlicePlan.for_volume(volume)
    share = answer(Question(MeasureKind.SHARE, 0, 1), [found, whole], volume, plan)
    assert (share.value, share.unit) == (50.0, "%")
    assert answer(Question(MeasureKind.SLICES, 0), [found], volume, plan).value == 2
    assert answer(Question(MeasureKind.INTENSITY, 0), [found], volume, plan).value == 0
    assert answer(Question(MeasureKind.VOLUME, 0), [None], volume, plan).value is None


def test_an_uncalibrated_image_is_measured_in_pixels():
    array = np.zeros((20, 20, 3), np.uint8)
    volume = Volume.from_array(array)
    mask = np.zeros((1, 20, 20), bool)
    mask[0, :2, :2] = True
    found = Segmentation.from_mask(resolve("polyp"), volume.geometry, mask)
    result = answer(Question(MeasureKind.VOLUME, 0), [found], volume, SlicePlan.for_volume(volume))
    assert (result.value, result.unit) == (4, "pixels")


def test_kept_slices_lose_nothing_else():
    found = ValueSession().segment("liver")
    cut = keep_slices(found, 0, 4, 100)
    np.testing.assert_array_equal(cut.to_array()[4:], ct().array[4:] == VALUES["liver"])
    assert not cut.to_array()[:4].any()
    assert keep_slices(found, 0, 9, 11).empty


# Plans without a model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases", "kinds"),
    [
        ("please segment the liver and the spleen", ["liver", "spleen"], set()),
        ("How large is the left kidney?", ["left kidney"], {MeasureKind.VOLUME}),
        ("count the nuclei", ["nucleus"], {MeasureKind.COUNT}),
    ],
)
def test_a_plan_from_the_requests_own_words(text, phrases, kinds):
    plan = plan_by_words(text)
    assert [one.concept.phrase for one in plan.targets] == phrases
    assert {one.kind for one in plan.questions} == kinds


def test_a_request_of_other_things_has_no_plan():
    with pytest.raises(PromptError, match="No structure"):
        plan_by_words("what will the weather be like on sunday in the north")
