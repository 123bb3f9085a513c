"""Every published layout is recognised and read from a miniature; what is wrong with a folder is said in one
sentence.
"""

import csv
import json
import shutil

import miniatures
import numpy as np
import pytest

from MedSAM3Core.errors import InputError, VolumeError
from MedSAM3Core.evaluation.datasets import read_dataset
from MedSAM3Core.evaluation.layouts import known_layouts
from MedSAM3Core.models.registry import HOME_VARIABLE
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import read_volume
from MedSAM3Core.volume.writing import write_segmentations


def test_every_layout_has_a_miniature():
    assert {make.__name__ for make in miniatures.ALL} == set(known_layouts())


@pytest.mark.parametrize("make", miniatures.ALL, ids=lambda make: make.__name__)
def test_a_published_layout(make, tmp_path):
    expected = make(tmp_path)
    found = read_dataset(tmp_path)
    assert found.name == make.__name__
    cases = {case.name: case for case in found.cases}
    for name, masks in expected.items():
        case = cases[name]
        image = case.read()
        read = case.read_references(image)
        for concept, mask in masks.items():
            wanted = np.broadcast_to(mask, image.geometry.shape)
            if name.endswith(".jpg") and "ISIC" not in name:  # JPEG masks lose a pixel here and there
                assert (read[concept] != wanted).mean() < 0.03, concept
            else:
                np.testing.assert_array_equal(read[concept], wanted, err_msg=f"{name}, {concept}")


def test_every_layout_says_where_to_get_the_data():
    for layout in known_layouts().values():
        assert layout.homepage.startswith("http")
        assert len(layout.obtain) > 10
        assert layout.patient_note


def test_layouts_that_ship_are_recognised_with_their_masks_only(tmp_path):
    miniatures.picture(tmp_path / "Image_01L.jpg")
    with pytest.raises(InputError, match="of no known layout"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="has no mask of 'retinal vessel'"):
        read_dataset(tmp_path, "chase_db1")


def test_a_folder_of_another_kind_says_where_the_data_is(tmp_path):
    with pytest.raises(InputError, match=r"holds no image of RIM-ONE DL .*rim-one-dl"):
        read_dataset(tmp_path, "rim_one")


def test_fewer_images_than_published_are_told(tmp_path):
    miniatures.ph2(tmp_path)
    assert "200 labelled images as published; 1 was found" in read_dataset(tmp_path).notices[0]


def test_splits_and_patients_of_published_sets(tmp_path):
    miniatures.tn3k(tmp_path)
    assert {case.name: case.split for case in read_dataset(tmp_path).cases} == {
        "test-image/0000.jpg": "test",
        "trainval-image/0000.jpg": "train",
    }
    miniatures.hc18(tmp_path / "hc18")
    assert {case.patient for case in read_dataset(tmp_path / "hc18").cases} == {"hc18/010"}


def _table(folder, rows, columns=("image", "concept", "mask", "patient", "split")):
    for row in rows:
        miniatures.picture(folder / row[0])
        if row[2]:
            miniatures.mask(folder / row[2])
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *(row[: len(columns)] for row in rows)])


def test_a_table_of_ones_own(tmp_path):
    _table(tmp_path, [("a.png", "polyp", "a_m.png", "p1", "test"), ("b.png", "polyp", "", "p2", "test")])
    found = read_dataset(tmp_path)
    first, second = found.of_split("test")
    assert first.read_references(first.read())["polyp"].sum() == miniatures.DISC.sum()
    assert not second.read_references(second.read())["polyp"].any()


def test_a_missing_mask_is_named(tmp_path):
    _table(tmp_path, [("a.png", "polyp", "a_m.png", "p1", "test")])
    (tmp_path / "a_m.png").unlink()
    with pytest.raises(InputError, match=r"names the mask a_m\.png of a\.png, which does not exist"):
        read_dataset(tmp_path)


def test_one_patient_in_two_splits_is_refused(tmp_path):
    _table(
        tmp_path, [("a.png", "polyp", "a_m.png", "p1", "test"), ("b.png", "polyp", "b_m.png", "p1", "train")]
    )
    with pytest.raises(InputError, match=r"patient 'p1' is in the splits test and train"):
        read_dataset(tmp_path)


def test_two_patients_with_one_name_are_asked_about(tmp_path):
    rows = [("x/p1.png", "polyp", "x/m.png"), ("y/p1.png", "polyp", "y/m.png")]
    _table(tmp_path, rows, ("image", "concept", "mask"))
    with pytest.raises(InputError, match=r"Two images are named 'p1', in x and in y; one patient or two"):
        read_dataset(tmp_path)


def test_an_empty_split_names_those_there_are(tmp_path):
    _table(tmp_path, [("a.png", "polyp", "a_m.png", "p1", "train")])
    with pytest.raises(InputError, match=r"The split 'test' of .* is empty; it has 1 train"):
        read_dataset(tmp_path).of_split("test")


def test_a_table_without_masks(tmp_path):
    (tmp_path / "cases.csv").write_text("image,concept\na.png,polyp\n")
    with pytest.raises(InputError, match="has no column 'mask'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x" * 3000 + ",m.png,", r"the image x{117}\.\.\., which does not exist"),
        ("a.png," + "x" * 3000 + ",", r"the mask x{117}\.\.\. of a\.png, which does not exist"),
        ("a.png,a.png," + "9" * 5000, r"the label value '9{116}\.\.\.; expected a whole number"),
    ],
)
def test_a_table_with_overlong_entries(tmp_path, row, words):
    miniatures.picture(tmp_path / "a.png")
    (tmp_path / "cases.csv").write_text(f"image,mask,value,concept\n{row},polyp\n")
    with pytest.raises(InputError, match=words):
        read_dataset(tmp_path)


def test_images_and_masks_need_a_concept(tmp_path):
    miniatures.picture(tmp_path / "images/a.png")
    miniatures.mask(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match="does not say what they show"):
        read_dataset(tmp_path)
    (case,) = read_dataset(tmp_path, concept="polyp").cases
    assert list(case.references) == ["polyp"]
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png has no mask"):
        read_dataset(tmp_path, concept="polyp")


def test_a_folder_of_corrected_cases(tmp_path):
    truth = miniatures.labels([1])
    for patient in ("anna", "ben"):
        miniatures.volume(tmp_path / patient / "ct.nrrd", miniatures.scan(truth))
        image = read_volume(tmp_path / patient / "ct.nrrd")
        found = [
            Segmentation.from_mask(Concept(name, name.lower(), name=name), image.geometry, mask)
            for name, mask in (("Liver", truth == 1), ("Spleen", truth == 9))
        ]
        write_segmentations(tmp_path / patient / "ct-segmentation.seg.nrrd", found, image)
    cases = read_dataset(tmp_path).cases
    assert [case.patient for case in cases] == ["anna", "ben"]
    masks = cases[0].read_references(cases[0].read())
    np.testing.assert_array_equal(masks["liver"], truth == 1)
    assert not masks["spleen"].any()


SCENE = """<MRML version="Slicer 5.10">
<Segmentation id="vtkMRMLSegmentationNode1" name="S"
 references="display:d1;referenceImageGeometryRef:vtkMRMLScalarVolumeNode2;storage:vtkMRMLSegmentationStorageNode1;"/>
<SegmentationStorage id="vtkMRMLSegmentationStorageNode1" fileName="Data/my%20segments.seg.nrrd"/>
<Volume id="vtkMRMLScalarVolumeNode1" references="storage:vtkMRMLVolumeArchetypeStorageNode1;"/>
<VolumeArchetypeStorage id="vtkMRMLVolumeArchetypeStorageNode1" fileName="Data/other.nrrd"/>
<Volume id="vtkMRMLScalarVolumeNode2" references="storage:vtkMRMLVolumeArchetypeStorageNode2;"/>
<VolumeArchetypeStorage id="vtkMRMLVolumeArchetypeStorageNode2" fileName="Data/ct%201.nrrd"/>
</MRML>"""


def _scene(folder):
    truth = miniatures.labels([1])
    for name in ("ct 1", "other"):
        miniatures.volume(folder / f"Data/{name}.nrrd", miniatures.scan(truth))
    image = read_volume(folder / "Data/ct 1.nrrd")
    found = Segmentation.from_mask(Concept("Liver", "liver", name="Liver"), image.geometry, truth == 1)
    write_segmentations(folder / "Data/my segments.seg.nrrd", [found], image)
    (folder / "scene.mrml").write_text(SCENE)
    return truth == 1


def test_a_scene_says_which_image_a_segmentation_is_of(tmp_path):
    truth = _scene(tmp_path / "anna")
    (case,) = read_dataset(tmp_path).cases
    assert (case.name, case.patient) == ("anna/Data/ct 1.nrrd", "anna")
    np.testing.assert_array_equal(case.read_references(case.read())["liver"], truth)


def test_an_archive_of_a_scene_is_unpacked_into_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    truth = _scene(tmp_path / "work/anna")
    (tmp_path / "data").mkdir()
    shutil.make_archive(str(tmp_path / "data/anna"), "zip", tmp_path / "work")
    (tmp_path / "data/anna.zip").rename(tmp_path / "data/anna.mrb")
    for _ in range(2):
        (case,) = read_dataset(tmp_path / "data").cases
        assert case.patient == "anna"
        np.testing.assert_array_equal(case.read_references(case.read())["liver"], truth)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["anna.mrb"]
    (tmp_path / "data/anna.mrb").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match=r"anna\.mrb cannot be unpacked"):
        read_dataset(tmp_path / "data")


def test_a_segmentation_without_its_image(tmp_path):
    truth = miniatures.labels([1])
    miniatures.volume(tmp_path / "ct.nrrd", miniatures.scan(truth))
    image = read_volume(tmp_path / "ct.nrrd")
    found = Segmentation.from_mask(Concept("liver", "liver"), image.geometry, truth == 1)
    write_segmentations(tmp_path / "ct.seg.nrrd", [found], image)
    (tmp_path / "ct.nrrd").unlink()
    with pytest.raises(InputError, match=r"ct\.seg\.nrrd has no image beside it"):
        read_dataset(tmp_path)


def test_a_mask_of_another_size(tmp_path):
    _table(tmp_path, [("a.png", "polyp", "a_m.png", "p1", "test")])
    miniatures.mask(tmp_path / "a_m.png", miniatures.DISC[:10])
    (case,) = read_dataset(tmp_path).cases
    with pytest.raises(VolumeError, match=r"a\.png, 'polyp': The mask a_m\.png has 24 x 10 x 1"):
        case.read_references(case.read())


def _coco(folder, segmentation, patient=None):
    miniatures.picture(folder / "a.png")
    image = {"id": 3, "file_name": "a.png", "height": 20, "width": 24} | (
        {"patient": patient} if patient else {}
    )
    content = {
        "images": [image],
        "categories": [{"id": 1, "name": "Polyp"}, {"id": 2, "name": "never_there"}],
        "annotations": [{"id": 7, "image_id": 3, "category_id": 1, "segmentation": segmentation}],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def _run_lengths(mask):
    """COCO counts runs down the columns, background first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    edges = edges if len(edges) % 2 == 0 else edges[:-1]
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def test_coco_run_lengths_and_polygons(tmp_path):
    coco_mask = pytest.importorskip("pycocotools.mask")
    packed = coco_mask.encode(np.asfortranarray(miniatures.DISC.astype(np.uint8)))
    shapes = {
        "counts": {"size": [20, 24], "counts": _run_lengths(miniatures.DISC)},
        "packed": {"size": [20, 24], "counts": packed["counts"].decode()},
    }
    for name, shape in shapes.items():
        (tmp_path / name / "valid").mkdir(parents=True)
        _coco(tmp_path / name / "valid", shape, "p1")
        (case,) = read_dataset(tmp_path / name).cases
        assert (case.split, case.patient, list(case.references)) == ("validation", "p1", ["polyp"])
        np.testing.assert_array_equal(case.read_references(case.read())["polyp"][0], miniatures.DISC)
    (tmp_path / "polygon").mkdir()
    _coco(tmp_path / "polygon", [[3, 5, 9, 5, 9, 11, 3, 11]])
    (case,) = read_dataset(tmp_path / "polygon").cases
    mask = case.read_references(case.read())["polyp"][0]
    assert mask[5:11, 3:9].all()
    assert mask.sum() == 36


def test_coco_that_is_none(tmp_path):
    (tmp_path / "_annotations.coco.json").write_text("[]")
    with pytest.raises(InputError, match="is not COCO JSON"):
        read_dataset(tmp_path)
    _coco(tmp_path, [])
    with pytest.raises(InputError, match="hold no annotation with a mask"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("text", ["<Annotations><Region>", "<!DOCTYPE x [<!ENTITY a 'b'>]><x/>"])
def test_outlines_that_are_none(tmp_path, text):
    miniatures.monuseg(tmp_path)
    next(tmp_path.rglob("*.xml")).write_text(text)
    (case,) = read_dataset(tmp_path, "monuseg").cases
    with pytest.raises(VolumeError, match="outlines"):
        case.read_references(case.read())
