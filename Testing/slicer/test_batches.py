"""Batches on nodes and from a script, on the same journal and table as ``medsam3 batch``."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
import slicer.util
from doubles import ThresholdClient
from mrml_scene import phantom

from MedSAM3Core.errors import Cancelled, OutputError
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.volume.reference import read_segmentation
from MedSAM3SlicerLib import batchscript
from MedSAM3SlicerLib.logic import SegmentationLogic

DOUBLE = f"{sys.executable} {Path(__file__).with_name('threshold_worker.py')}"


@pytest.fixture
def client():
    return ThresholdClient()


@pytest.fixture
def logic(application, client):
    made = SegmentationLogic(application.scene, client, sequencesLogic=application.sequences)
    yield made
    made.close()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_batch_on_nodes_has_a_table_and_a_contact_sheet(application, logic, ct, tmp_path):
    broken = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "broken")
    [done, failed] = logic.segmentAll([ct, broken], ["liver"], tmp_path)
    assert done.found == ("Liver",)
    [first, second] = rows(tmp_path)
    assert (first["status"], second["status"]) == ("done", "failed")
    assert second["error"] == failed.problem
    assert (tmp_path / "contact-001.png").is_file()
    [segment] = read_segmentation(done.path)
    assert segment.mask.sum() == int(first["voxels"]) > 0


def test_a_second_batch_does_not_overwrite_the_first(logic, ct, tmp_path):
    logic.segmentAll([ct], "liver", tmp_path)
    with pytest.raises(OutputError, match="holds a batch of 1 case already"):
        logic.segmentAll([ct], "liver", tmp_path)
    with pytest.raises(OutputError, match="made with the model's own threshold"):
        logic.segmentAll([ct], "liver", tmp_path, resume=True, threshold=0.6)


def test_a_batch_can_be_stopped_and_gone_on_with(application, logic, client, ct, tmp_path):
    other = application.addVolume(phantom((6, 10, 12)), name="other")
    token = CancelToken()

    def stop(progress):
        if progress.fraction > 0.6:  # within the second volume
            token.cancel()

    client.polls = 30
    with pytest.raises(Cancelled):
        logic.segmentAll([ct, other], "liver", tmp_path, progress=stop, cancel=token)
    asked = len(client.asked)
    assert [result.problem for result in logic.segmentAll([ct, other], "liver", tmp_path, resume=True)] == [
        "",
        "",
    ]
    assert len(client.asked) == asked + 1


def test_the_script_does_the_same_for_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(os.environ), raising=False)
    source = tmp_path / "in"
    source.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(phantom((6, 10, 12)).astype(np.int16)), str(source / "a.nrrd"))
    (source / "b.nrrd").write_bytes(b"NRRD0004\n")
    arguments = [str(source), "-c", "liver", "-o", str(tmp_path / "out"), "--worker", DOUBLE]
    assert batchscript.run(arguments) == 1
    assert "1 done, 1 failed" in capsys.readouterr().out
    [segment] = read_segmentation(tmp_path / "out" / "a.seg.nrrd")
    np.testing.assert_array_equal(segment.mask, phantom((6, 10, 12)) > 0)
    assert batchscript.run(arguments) == 2
    assert "add --resume" in capsys.readouterr().err
