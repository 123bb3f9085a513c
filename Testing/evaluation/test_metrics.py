"""Our figures against SimpleITK's filters, brute force, and MONAI on the same masks."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.distance import cdist

from MedSAM3Core.evaluation.instances import components, iou_table, score_instances
from MedSAM3Core.evaluation.metrics import Overlap, surface, surface_distance

SPACING = (2.5, 0.8, 1.1)


def _blob(random, shape=(9, 24, 26)):
    noise = sitk.GetImageFromArray(random.normal(size=shape).astype(np.float32))
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 2.0))
    return smooth > np.percentile(smooth, 85)


@pytest.fixture(params=range(5), ids=lambda seed: f"seed{seed}")
def masks(request):
    random = np.random.default_rng(request.param)
    return _blob(random), _blob(random)


def _itk(mask):
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    return image


def test_overlap_equals_simpleitk(masks):
    overlap = Overlap.of(*masks)
    filters = sitk.LabelOverlapMeasuresImageFilter()
    filters.Execute(_itk(masks[1]), _itk(masks[0]))
    assert overlap.dice == pytest.approx(filters.GetDiceCoefficient())
    assert overlap.iou == pytest.approx(filters.GetJaccardCoefficient())


def _itk_distances(answer, reference):
    """Distances from each surface voxel of one mask to the other's surface, by ITK's contour and distance filters."""
    padded = [sitk.ConstantPad(_itk(mask), (1, 1, 1), (1, 1, 1), 0) for mask in (answer, reference)]
    contours = [sitk.LabelContour(image, fullyConnected=False) for image in padded]
    maps = [
        sitk.Abs(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True))
        for c in contours
    ]
    arrays = [
        (sitk.GetArrayFromImage(c) > 0, sitk.GetArrayFromImage(m))
        for c, m in zip(contours, maps, strict=True)
    ]
    # Inside a one-voxel contour the signed map is zero on it, so its absolute value is the distance to its voxels.
    return arrays[1][1][arrays[0][0]], arrays[0][1][arrays[1][0]]


def test_surface_distances_equal_simpleitk(masks):
    there, back = _itk_distances(*masks)
    found = surface_distance(*masks, SPACING, tolerance=1.5)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)
    near = (there <= 1.5).sum() + (back <= 1.5).sum()
    assert found.nsd == pytest.approx(near / (len(there) + len(back)))


def test_surface_distances_equal_brute_force(masks):
    points = [np.argwhere(surface(mask)) * SPACING for mask in masks]
    table = cdist(*points)
    there, back = table.min(1), table.min(0)
    found = surface_distance(*masks, SPACING, tolerance=2.0)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.nsd == pytest.approx(((there <= 2).sum() + (back <= 2).sum()) / (len(there) + len(back)))


@pytest.mark.slow  # MONAI takes up to a minute to import on a busy machine
def test_surface_distances_equal_monai(masks):
    metrics = pytest.importorskip("monai.metrics")
    import torch

    answer, reference = (torch.from_numpy(mask)[None, None].float() for mask in masks)
    theirs = metrics.compute_hausdorff_distance(
        answer, reference, include_background=True, percentile=95, spacing=SPACING
    )
    dice = metrics.compute_surface_dice(answer, reference, [1.5], include_background=True, spacing=SPACING)
    found = surface_distance(*masks, SPACING, tolerance=1.5)
    assert found.hd95 == pytest.approx(float(theirs), rel=1e-5)
    assert found.nsd == pytest.approx(float(dice), rel=1e-5)


def test_a_known_shift_has_the_distance_it_was_shifted_by():
    reference = np.zeros((12, 40, 40), bool)
    reference[3:9, 10:20, 10:20] = True
    answer = np.roll(reference, 4, axis=2)
    found = surface_distance(answer, reference, (3.0, 1.0, 0.5), tolerance=2.0)
    assert found.hd95 == pytest.approx(2.0)  # 4 voxels of 0.5 mm
    assert found.nsd == 1.0
    assert surface_distance(answer, reference, (3.0, 1.0, 0.5), tolerance=1.9).nsd < 1


def test_a_single_slice_is_judged_as_a_plane():
    reference = np.zeros((1, 30, 30), bool)
    reference[0, 5:25, 5:25] = True
    answer = reference.copy()
    answer[0, 14:16, 14:16] = False  # a hole in the middle: its rim is far from the outline
    found = surface_distance(answer, reference, (1.0, 1.0, 1.0), tolerance=1.0)
    assert found.nsd < 1


def test_empty_masks():
    empty, full = np.zeros((4, 5, 6), bool), np.ones((4, 5, 6), bool)
    assert surface_distance(empty, empty, SPACING, 1.0) is None
    missed = surface_distance(empty, full, SPACING, 1.0)
    assert (missed.hd95, missed.nsd) == (None, 0.0)
    assert Overlap.of(empty, empty).dice == 1.0
    assert Overlap.of(empty, full).iou == 0.0


def test_instances_are_counted_as_by_hand():
    reference = np.zeros((20, 40), int)
    answer = np.zeros((20, 40), int)
    reference[2:8, 2:8], answer[2:8, 2:8] = 1, 5  # exact
    reference[2:8, 12:18], answer[2:8, 14:20] = 2, 6  # IoU 24/48
    reference[2:8, 22:28] = 3  # missed
    answer[12:15, 30:33] = 7  # made up
    score = score_instances(answer, reference)
    assert (score.found, score.expected) == (3, 3)
    assert score.f1 == pytest.approx(2 * 2 / 6)
    # at .5 two of three are found; from .55 on one is
    assert score.ap == pytest.approx((2 / 4 + 9 * (1 / 5)) / 10)


def test_instance_overlaps_equal_a_loop():
    random = np.random.default_rng(3)
    answer, reference = random.integers(0, 5, (30, 30)), random.integers(0, 4, (30, 30))
    table = iou_table(answer, reference)
    for row in range(1, 5):
        for column in range(1, 4):
            ours, theirs = answer == row, reference == column
            assert table[row - 1, column - 1] == pytest.approx((ours & theirs).sum() / (ours | theirs).sum())


def test_no_objects_at_all():
    nothing = np.zeros((5, 5), int)
    one = components(np.pad(np.ones((2, 2), bool), 2))
    assert score_instances(nothing, nothing[:5]).f1 == 1.0
    assert score_instances(np.zeros_like(one), one).f1 == 0.0
