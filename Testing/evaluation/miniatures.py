"""A miniature of each published layout: two cases, written as the publishers lay them out."""

import json

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

SIZE = (20, 24)
DISC = np.add.outer((np.arange(20) - 10) ** 2, (np.arange(24) - 12) ** 2) <= 30
OTHER = np.roll(DISC, 7, axis=1)


def picture(path, mask=DISC, rgb=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.where(mask, 200, 40).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2) if rgb else grey).save(path)


def mask(path, of=DISC):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(of.astype(np.uint8) * 255).save(path)


def volume(path, array, spacing=(1.0, 1.0, 2.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def labels(values):
    """(4, 20, 24) with a disc of each value on its own slice range."""
    array = np.zeros((4, *SIZE), np.uint8)
    for number, value in enumerate(values):
        array[number % 4, DISC] = value
    return array


def scan(labels, dtype=np.int16):
    return (labels.astype(dtype) * 40 + 10).astype(dtype)


def busi(folder):
    root = folder / "Dataset_BUSI_with_GT"
    for kind, masks in (("benign", [DISC, OTHER]), ("normal", [np.zeros(SIZE, bool)])):
        picture(root / kind / f"{kind} (1).png")
        for number, one in enumerate(masks):
            mask(root / kind / f"{kind} (1)_mask{f'_{number}' if number else ''}.png", one)
    picture(root / "benign/benign (10).png")  # its masks must not be taken for those of (1)
    mask(root / "benign/benign (10)_mask.png", OTHER)
    return {
        "Dataset_BUSI_with_GT/benign/benign (1).png": {"breast tumor": DISC | OTHER},
        "Dataset_BUSI_with_GT/normal/normal (1).png": {"breast tumor": np.zeros(SIZE, bool)},
    }


def rim_one(folder):
    for part in ("partitioned_randomly", "partitioned_by_hospital"):
        picture(folder / f"RIM-ONE_DL_images/{part}/test_set/glaucoma/r1_Im001.png")
    for name, of in (("Cup", DISC), ("Disc", OTHER)):
        mask(folder / f"RIM-ONE_DL_reference_segmentations/glaucoma/r1_Im001-1-{name}-T.png", of)
    return {
        "RIM-ONE_DL_images/partitioned_randomly/test_set/glaucoma/r1_Im001.png": {
            "optic cup": DISC,
            "optic disc": OTHER,
        }
    }


def isic2018(folder):
    picture(folder / "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg")
    mask(folder / "ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png")
    return {"ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg": {"skin lesion": DISC}}


def kvasir_seg(folder):
    name = "cju0qkwl35piu0993l0dewei2"
    picture(folder / f"Kvasir-SEG/images/{name}.jpg")
    picture(folder / f"Kvasir-SEG/masks/{name}.jpg", DISC)  # published as JPEG: not exactly 0 and 255
    return {f"Kvasir-SEG/images/{name}.jpg": {"polyp": DISC}}


def dsb2018(folder):
    name = "00ae65c1c6631ae6f2be1a449902976e6eb8483bf6b0740d00530220832c6d3e"
    picture(folder / f"stage1_train/{name}/images/{name}.png")
    for number, one in enumerate((DISC, np.roll(DISC, 12, axis=1) & ~DISC)):
        mask(folder / f"stage1_train/{name}/masks/{number:064x}.png", one)
    return {f"stage1_train/{name}/images/{name}.png": {"nucleus": DISC | np.roll(DISC, 12, axis=1)}}


def monuseg(folder):
    stem = "TCGA-A7-A13E-01Z-00-DX1"
    picture(folder / f"MoNuSeg 2018 Training Data/Tissue Images/{stem}.tif")
    square = np.zeros(SIZE, bool)
    square[5:11, 3:9] = True
    corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ((3, 5), (8, 5), (8, 10), (3, 10)))
    path = folder / f"MoNuSeg 2018 Training Data/Annotations/{stem}.xml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"<Annotations><Annotation><Regions><Region><Vertices>{corners}</Vertices></Region></Regions>"
        "</Annotation></Annotations>"
    )
    return {f"MoNuSeg 2018 Training Data/Tissue Images/{stem}.tif": {"nucleus": square}}


def promise12(folder):
    truth = labels([1])
    volume(folder / "Case00.mhd", scan(truth))
    volume(folder / "Case00_segmentation.mhd", truth)
    return {"Case00.mhd": {"prostate": truth == 1}}


def lits(folder):
    truth = labels([1, 2])
    volume(folder / "Training Batch 1/volume-0.nii", scan(truth), spacing=(1, 1, 2))
    volume(folder / "Training Batch 1/segmentation-0.nii", truth, spacing=(1, 1, 3))  # headers disagree
    return {"Training Batch 1/volume-0.nii": {"liver": truth > 0, "liver tumor": truth == 2}}


def chase_db1(folder):
    picture(folder / "Image_01L.jpg")
    mask(folder / "Image_01L_1stHO.png")
    mask(folder / "Image_01L_2ndHO.png", OTHER)
    return {"Image_01L.jpg": {"retinal vessel": DISC}}


def stare(folder):
    picture(folder / "im0001.ppm")
    picture(folder / "im0002.ppm")  # not all images have labels
    path = folder / "im0001.ah.ppm"
    Image.fromarray(np.repeat((DISC * 255).astype(np.uint8)[..., None], 3, axis=2)).save(path)
    return {"im0001.ppm": {"retinal vessel": DISC}}


def ph2(folder):
    root = folder / "PH2 Dataset images/IMD002"
    picture(root / "IMD002_Dermoscopic_Image/IMD002.bmp")
    mask(root / "IMD002_lesion/IMD002_lesion.bmp")
    return {"PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp": {"skin lesion": DISC}}


def hc18(folder):
    from scipy.ndimage import binary_erosion

    for name in ("010_HC", "010_2HC"):
        picture(folder / f"training_set/{name}.png", rgb=False)
        mask(folder / f"training_set/{name}_Annotation.png", DISC & ~binary_erosion(DISC))
    return {f"training_set/{name}.png": {"fetal head": DISC} for name in ("010_HC", "010_2HC")}


def tn3k(folder):
    for part in ("trainval", "test"):
        picture(folder / f"{part}-image/0000.jpg")
        picture(folder / f"{part}-mask/0000.jpg", DISC if part == "test" else OTHER)
    return {
        "test-image/0000.jpg": {"thyroid nodule": DISC},
        "trainval-image/0000.jpg": {"thyroid nodule": OTHER},
    }


def cvc_clinicdb(folder):
    picture(folder / "CVC-ClinicDB/Original/1.tif")
    mask(folder / "CVC-ClinicDB/Ground Truth/1.tif")
    return {"CVC-ClinicDB/Original/1.tif": {"polyp": DISC}}


def etis(folder):
    picture(folder / "ETIS-LaribPolypDB/1.tif")
    mask(folder / "Ground Truth/p1.tif")
    return {"ETIS-LaribPolypDB/1.tif": {"polyp": DISC}}


def polypgen(folder):
    root = folder / "PolypGen2021_MultiCenterData_v3/data_C1"
    picture(root / "images_C1/100H0050.jpg")
    picture(root / "masks_C1/100H0050_mask.jpg")
    return {"PolypGen2021_MultiCenterData_v3/data_C1/images_C1/100H0050.jpg": {"polyp": DISC}}


def msd(folder):
    truth = labels([1, 2])
    volume(folder / "imagesTr/liver_0.nii.gz", scan(truth))
    volume(folder / "labelsTr/liver_0.nii.gz", truth)
    (folder / "imagesTr/._liver_0.nii.gz").write_bytes(b"macOS")
    names = {"0": "background", "1": "liver", "2": "cancer"}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return {"imagesTr/liver_0.nii.gz": {"liver": truth > 0, "tumor": truth == 2}}


def amos(folder):
    truth = labels([1, 5, 8])
    volume(folder / "imagesVa/amos_0008.nii.gz", scan(truth))
    volume(folder / "labelsVa/amos_0008.nii.gz", truth)
    names = {"0": "background", "1": "spleen", "5": "esophagus", "8": "arota"}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return {"imagesVa/amos_0008.nii.gz": {"spleen": truth == 1, "aorta": truth == 8}}


def btcv(folder):
    truth = labels([1, 6, 8])
    volume(folder / "Training/img/img0001.nii.gz", scan(truth))
    volume(folder / "Training/label/label0001.nii.gz", truth)
    return {
        "Training/img/img0001.nii.gz": {"spleen": truth == 1, "liver": truth == 6, "pancreas": truth == 11}
    }


ALL = (busi, rim_one, isic2018, kvasir_seg, dsb2018, monuseg, promise12, lits, chase_db1, stare, ph2, hc18, tn3k,
       cvc_clinicdb, etis, polypgen, msd, amos, btcv)  # fmt: skip
