"""A reduced run of `fuzz.py` with fixed seeds, hypothesis on the same damages, and proof that findings are found."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz_inputs import KINDS, Case, Seed, plan, seeds, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damage_bytes

from MedSAM3Core.errors import MedSAM3Error

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")


@linux
def test_damaged_files_are_read_or_refused_in_a_sentence() -> None:
    """80 files of the kinds without a network in them, in processes under limits; 20,000 are docs/reliability.md's."""
    cases = [case for case in plan(240, seed=3) if case.kind in ("seg.nrrd", "manifest", "png")]
    results = fuzz.run(cases)
    assert len(results) == len(cases)
    assert [r for r in results if r.verdict not in fuzz.FINE] == []
    assert {r.verdict for r in results} == set(fuzz.FINE)


@settings(max_examples=250)
@given(kind=st.sampled_from([k for k in KINDS if k != "checkpoint"]), number=st.integers(0, 10**6))
def test_any_damage_ends_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, number: int
) -> None:
    folder = tmp_path_factory.mktemp("case")
    seed, path = write_case(Case(kind, number, 11), folder, str(folder / "canary"))
    try:
        seed.read(path)
    except MedSAM3Error as error:
        assert fuzz._judge(error) == ("sentence", "")  # noqa: PT017 - many can be read
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_files_are_read(tmp_path: Path, kind: str) -> None:
    """Otherwise only the first check of each reader would be fuzzed. Some of pydicom's files are meant to fail."""
    read = 0
    for number, seed in enumerate(seeds(kind)):
        folder = tmp_path / str(number)
        for name, content in (*seed.company, (seed.name, seed.data)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        try:
            seed.read(folder / seed.name)
            read += 1
        except MedSAM3Error:
            assert kind in ("dicom", "checkpoint")
    assert read >= 0.6 * len(seeds(kind))


def test_a_seed_gives_the_same_file_again(tmp_path: Path) -> None:
    data = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, path = write_case(Case("png", 5, 1), tmp_path / name, "canary")
        data.append(path.read_bytes())
    assert data[0] == data[1]


@linux
@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("raise KeyError('x')", "crash"),
        ("raise VolumeError('two\\nlines.')", "no sentence"),
        ("raise VolumeError('no full stop')", "no sentence"),
        ("bytearray(2**31)", "crash"),
        ("raise VolumeError('a cause.') from MemoryError()", "memory"),
        ("open(path.parent.parent / 'canary', 'w')", "code"),
        ("held.append(b'x' * (600 * 2**20))", "memory"),
        ("return 1", "read"),
        ("raise VolumeError('Fine.')", "sentence"),
    ],
)
def test_findings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, verdict: str) -> None:
    scope: dict = {"held": []}
    exec(f"from MedSAM3Core.errors import VolumeError\ndef read(path):\n    {body}", scope)
    seed = Seed("a.bin", b"12345678", damage_bytes, scope["read"])
    monkeypatch.setattr("fuzz_inputs.seeds", lambda kind: (seed,))
    if "2**31" in body:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (fuzz._status("VmSize") + 2**28, soft[1]))
    try:
        assert fuzz.try_case(Case("png", 0, 1), tmp_path).verdict == verdict
    finally:
        if "2**31" in body:
            resource.setrlimit(resource.RLIMIT_AS, soft)


@linux
@pytest.mark.parametrize(
    ("end", "verdict"), [("os.kill(os.getpid(), 11)", "ended"), ("while True: pass", "hang")]
)
def test_a_process_that_ends_or_hangs_is_blamed_on_its_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, verdict: str
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, signal, sys\nsignal.setitimer(signal.ITIMER_PROF, 0.3)\n"
        "for n in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        f"    if n == 1:\n        {end}\n"
        '    print(\'{"kind": "png", "number": %d, "verdict": "read"}\' % n, flush=True)\n'
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    results = fuzz.run([Case("png", n, 1) for n in range(4)])
    assert [r.number for r in results] == [0, 1, 2, 3]
    assert [r.verdict for r in results] == ["read", verdict, "read", "read"]


def test_the_plan_is_as_large_as_asked() -> None:
    assert abs(len(plan(20_000, 1)) - 20_000) < 10
    assert {case.kind for case in plan(20_000, 1)} == set(KINDS)
    assert random.Random("1 png 5").random() == Case("png", 5, 1).source().random()


def test_a_header_that_ends_the_process_in_itk_is_refused_before(tmp_path: Path) -> None:
    """What `fuzz.py --again nrrd:11 --seed 1` was when it was found; without our check it is a segmentation fault."""
    from MedSAM3Core.errors import VolumeError
    from MedSAM3Core.volume import read_volume
    from MedSAM3Core.volume.reference import read_segmentation

    head = b"NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\nsizes: 9 8 3\n"
    vectors = b"space directions: (0.8,0.0,0.0) (-0.1,0.7,0.2) (0.0,-0.5,2.5)bzip2" + b"*" * 3000
    path = tmp_path / "a.seg.nrrd"
    path.write_bytes(head + vectors + b"\nencoding: raw\n\n" + bytes(216))
    for read in (read_volume, read_segmentation):
        with pytest.raises(VolumeError, match="space directions"):
            read(path)
