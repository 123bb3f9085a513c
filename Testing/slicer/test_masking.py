"""Masks and overwriting of the segment editor, reckoned in numpy, against the segment editor logic's own result."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from mrml_scene import Application, result

from MedSAM3SlicerLib.adapter import segments
from MedSAM3SlicerLib.adapter.history import LogicHistory
from MedSAM3SlicerLib.adapter.segments import SegmentWriter, editedByHand, findSegment, readMask

SHAPE = (10, 16, 18)
MODES = [
    "EditAllowedEverywhere",
    "EditAllowedInsideAllSegments",
    "EditAllowedInsideVisibleSegments",
    "EditAllowedOutsideAllSegments",
    "EditAllowedOutsideVisibleSegments",
    "EditAllowedInsideSingleSegment",
]
OVERWRITING = ["OverwriteNone", "OverwriteVisibleSegments", "OverwriteAllSegments"]
HIDDEN = ("Second", "Fifth")


def blob(seed, *ranges):
    """Mask with about 7 of 10 voxels of a block set."""
    mask = np.zeros(SHAPE, bool)
    where = tuple(slice(*ends) for ends in ranges)
    mask[where] = np.random.default_rng(seed).random(mask[where].shape) < 0.7
    return mask


BEFORE = {
    "own": blob(1, (2, 8), (3, 12), (2, 12)),
    "first": blob(2, (0, 6), (0, 9), (4, 18)),
    "second": blob(3, (4, 10), (6, 16), (0, 10)),
    "third": blob(4, (3, 5), (5, 9), (5, 9)),
    "fourth": blob(
        7, (0, 2), (5, 14), (3, 14)
    ),  # these two beside "own", so that they can share its labelmap
    "fifth": blob(8, (2, 8), (9, 14), (12, 14)),
}
RESULT = blob(5, (1, 7), (5, 14), (3, 14))
INTENSITIES = np.random.default_rng(6).integers(-100, 300, SHAPE)


@pytest.fixture(scope="module")
def scene():
    """One for all cases: making it takes longer than they do."""
    application = Application()
    yield application
    application.close()


@pytest.fixture
def application(scene):
    editor = scene.editorNode
    yield scene
    editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
    editor.SetMaskSegmentID("")
    editor.SetOverwriteMode(editor.OverwriteNone)
    editor.SetSourceVolumeIntensityMask(False)


class Case:
    """A segmentation of segments that overlap, two of them hidden; what is written is either new or "own" again.

    Args:
        application: The scene.
        together: Whether segments that leave room for each other share a labelmap, as after loading a file.
        isNew: Whether the result becomes a segment of its own.
        dtype: Of the volume.
    """

    def __init__(self, application, together=False, isNew=False, dtype=np.int16):
        self.application = application
        self.volume = application.addVolume(INTENSITIES.astype(dtype), (1, 1, 2), name="CT")
        logic = application.editorLogic
        self.writer = SegmentWriter(application.scene, logic, LogicHistory(logic))
        self.node = self.writer.createNode(self.volume)
        self.writer.write(self.node, self.volume, [result(self.volume, m, n) for n, m in BEFORE.items()])
        if together:
            self.node.GetSegmentation().CollapseBinaryLabelmaps(False)
        for name in HIDDEN:
            self.node.GetDisplayNode().SetSegmentVisibility(findSegment(self.node, name), False)
        self.isNew = isNew

    def mask(self, mode="EditAllowedEverywhere", overwriting="OverwriteNone", intensities=None):
        editor = self.application.editorNode
        editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mode))
        editor.SetMaskSegmentID(findSegment(self.node, "First"))
        editor.SetOverwriteMode(getattr(editor, overwriting))
        editor.SetSourceVolumeIntensityMask(intensities is not None)
        if intensities is not None:
            editor.SetSourceVolumeIntensityMaskRange(*intensities)

    def write(self, mask=RESULT):
        found = result(self.volume, mask, "new" if self.isNew else "own")
        target = "" if self.isNew else findSegment(self.node, "Own")
        (written,) = self.writer.write(self.node, self.volume, [found], [target])
        return written

    def voxels(self):
        """Name to the segment's voxels, bool `SHAPE`."""
        segmentation = self.node.GetSegmentation()
        found = {}
        for segmentId in segmentation.GetSegmentIDs():
            extent, crop = readMask(self.node, segmentId, self.volume)
            mask = found[segmentation.GetSegment(segmentId).GetName()] = np.zeros(SHAPE, bool)
            if extent is not None:
                mask[extent.slices] = crop
        return found


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def both(monkeypatch, masks, mask=RESULT, **layout):
    """The case after our write, and another one after the logic's own."""
    ours, theirs = Case(**layout), Case(**layout)
    ours.mask(**masks)
    ours.write(mask)
    theirs.mask(**masks)
    with monkeypatch.context() as patch:
        patch.setattr(segments, "maskedWrite", lambda *_: None)
        theirs.write(mask)
    return ours, theirs


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
@pytest.mark.parametrize("isNew", [False, True], ids=["replaced", "new"])
@pytest.mark.parametrize("intensities", [None, (-20.5, 200.5)], ids=["", "within a range"])
@pytest.mark.parametrize("overwriting", OVERWRITING)
@pytest.mark.parametrize("mode", MODES)
def test_voxels_are_those_of_the_segment_editor_logic(
    application, monkeypatch, mode, overwriting, intensities, isNew, together
):
    masks = {"mode": mode, "overwriting": overwriting, "intensities": intensities}
    ours, theirs = both(monkeypatch, masks, application=application, together=together, isNew=isNew)
    assert same(ours.voxels(), theirs.voxels())


@pytest.mark.parametrize("mode", MODES)
def test_a_result_of_nothing_leaves_what_the_masks_protect(application, monkeypatch, mode):
    masks = {"mode": mode, "overwriting": "OverwriteVisibleSegments", "intensities": (0, 150)}
    nothing = np.zeros(SHAPE, bool)
    ours, theirs = both(monkeypatch, masks, nothing, application=application)
    assert same(ours.voxels(), theirs.voxels())
    protected = BEFORE["own"] & ~((INTENSITIES >= 0) & (INTENSITIES <= 150))
    assert (ours.voxels()["Own"] >= protected).all()


@pytest.mark.parametrize(
    ("dtype", "intensities"),
    [
        (np.int16, (-0.9, 99.9)),
        (np.int16, (-1e6, 1e6)),
        (np.uint8, (-50, 20.7)),
        (np.uint8, (300, 400)),
        (np.float32, (-0.9, 99.9)),
        (np.float64, (-np.inf, 12)),
    ],
)
def test_ends_of_an_intensity_range_are_read_as_the_logic_reads_them(
    application, monkeypatch, dtype, intensities
):
    ours, theirs = both(monkeypatch, {"intensities": intensities}, application=application, dtype=dtype)
    assert same(ours.voxels(), theirs.voxels())


class LogicThatDoesNotWrite:
    """The segment editor logic, which must not be asked to change a segment."""

    def __init__(self, logic):
        self._logic = logic

    def __getattr__(self, name):
        assert name != "ModifySegmentByLabelmap"
        return getattr(self._logic, name)


@pytest.mark.parametrize("overwriting", OVERWRITING)
@pytest.mark.parametrize("mode", MODES)
def test_the_logic_is_not_needed(application, mode, overwriting):
    case = Case(application)
    case.mask(mode, overwriting, (0, 200))
    case.writer._editorLogic = LogicThatDoesNotWrite(application.editorLogic)
    case.write()
    assert (case.voxels()["Own"] != BEFORE["own"]).any()


def test_what_is_written_is_known_without_reading_it_back(application, monkeypatch):
    case = Case(application)
    case.mask("EditAllowedInsideSingleSegment", "OverwriteAllSegments")
    monkeypatch.setattr(segments, "markAsWritten", None)
    written = case.write()
    assert not editedByHand(case.node, written.segmentId, case.volume)
    assert written.volumeMl == pytest.approx(case.voxels()["Own"].sum() * 2 / 1000)


def test_neighbours_shrink_to_what_is_left_of_them(application, monkeypatch):
    everything = np.ones(SHAPE, bool)
    everything[:, :, :6] = False
    ours, theirs = both(
        monkeypatch, {"overwriting": "OverwriteAllSegments"}, everything, application=application
    )
    for name in BEFORE.keys() - {"fifth"}:  # of which nothing is left: there the logic leaves zeros
        extents = [
            case.node.GetSegmentation()
            .GetSegment(findSegment(case.node, name))
            .GetRepresentation("Binary labelmap")
            .GetExtent()
            for case in (ours, theirs)
        ]
        assert extents[0] == extents[1]


def test_a_neighbour_that_loses_everything_is_empty(application):
    case = Case(application)
    case.mask(overwriting="OverwriteAllSegments")
    case.write(np.ones(SHAPE, bool))
    assert {name: mask.any() for name, mask in case.voxels().items()} == {
        "Own": True, "First": False, "Second": False, "Third": False, "Fourth": False, "Fifth": False
    }  # fmt: skip


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_undo_brings_all_of_it_back_and_redo_takes_it_again(application, together):
    case = Case(application, together)
    before = case.voxels()
    case.mask("EditAllowedInsideVisibleSegments", "OverwriteAllSegments", (0, 200))
    case.write()
    after = case.voxels()
    assert not same(before, after)
    for _ in range(2):
        case.writer.history.undo()
        assert same(case.voxels(), before)
        case.writer.history.redo()
        assert same(case.voxels(), after)
    case.writer.history.undo()
    case.write(~RESULT)  # into what came back from the history
    case.writer.history.undo()
    assert same(case.voxels(), before)


def test_the_users_selection_stays(application, monkeypatch):
    case = Case(application)
    selected = findSegment(case.node, "Third")
    application.editorNode.SetAndObserveSegmentationNode(case.node)
    application.editorNode.SetSelectedSegmentID(selected)
    case.mask("EditAllowedOutsideAllSegments")
    monkeypatch.setattr(segments, "maskedWrite", lambda *_: None)
    case.write()
    assert application.editorNode.GetSelectedSegmentID() == selected


@pytest.mark.parametrize("mode", MODES[1:])
def test_masks_hold_in_a_segmentation_of_another_grid(application, mode):
    """Coarser than the volume, shifted and smaller, so that the result reaches beyond it."""
    case = Case(application)
    coarse = application.addVolume(np.zeros((9, 8, 9), np.int16), (2, 2, 2), (1, 1, 0), name="coarse")
    node = case.writer.createNode(coarse)
    part = np.zeros((9, 8, 9), bool)
    part[2:6, 2:7, 2:6] = True
    (first,) = case.writer.write(node, coarse, [result(coarse, part, "first")])
    case.mask(mode)
    application.editorNode.SetMaskSegmentID(first.segmentId)
    (written,) = case.writer.write(node, case.volume, [result(case.volume, np.ones(SHAPE, bool), "new")])
    extent, crop = readMask(node, written.segmentId, coarse)
    held = np.zeros((9, 8, 9), bool)
    held[extent.slices] = crop
    assert (held == (part if "Inside" in mode else ~part)).all()
    assert not editedByHand(node, written.segmentId, case.volume)


@pytest.mark.parametrize("missing", ["mask segment", "display node"])
def test_a_mask_of_what_is_not_there_is_left_to_the_logic(application, monkeypatch, missing):
    masks = {"mode": "EditAllowedInsideSingleSegment"}
    if missing == "display node":
        masks = {"mode": "EditAllowedInsideVisibleSegments"}
    case = Case(application)
    case.mask(**masks)
    if missing == "mask segment":
        application.editorNode.SetMaskSegmentID("gone")
    else:
        case.node.SetAndObserveDisplayNodeID(None)
    asked = []
    real = segments._setByLogic
    monkeypatch.setattr(segments, "_setByLogic", lambda *given: asked.append(given) or real(*given))
    case.write()
    assert len(asked) == 1
