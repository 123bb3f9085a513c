"""Stepping down is tested with an injected fault; no GPU and no torch are needed."""

import pytest

from MedSAM3Core.errors import Cancelled, ResourceError
from MedSAM3Core.worker.backend import looks_out_of_memory
from MedSAM3Core.worker.memory import LADDER, run_stepping_down


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


class Recorder:
    """Doubles the server: answers as told and remembers."""

    def __init__(self, answer=True):
        self.answer = answer
        self.told, self.asked, self.given_back = [], [], 0

    def is_out_of_memory(self, fault):
        return looks_out_of_memory(fault)

    def give_back(self):
        self.given_back += 1

    def tell(self, step):
        self.told.append(step.name)

    def ask(self, question):
        self.asked.append(question)
        return self.answer


def run_that_fits(name, seen):
    def run(step):
        seen.append(step.name)
        if [s.name for s in LADDER].index(step.name) < [s.name for s in LADDER].index(name):
            raise OutOfMemoryError("CUDA out of memory")
        return f"done {step.name}"

    return run


@pytest.mark.parametrize("fits", [step.name for step in LADDER])
def test_it_goes_down_until_it_fits_and_finishes(fits):
    recorder, seen = Recorder(), []
    result, index = run_stepping_down(run_that_fits(fits, seen), recorder)
    assert result == f"done {fits}"
    assert LADDER[index].name == fits
    assert recorder.told == seen[1:]
    assert recorder.given_back == len(seen) - 1
    assert bool(recorder.asked) == (fits == "cpu")


def test_what_served_last_time_is_tried_first():
    seen = []
    _, index = run_stepping_down(run_that_fits("smaller batches", seen), Recorder(), start=1)
    assert seen == ["smaller batches"]
    assert index == 1


def test_the_cpu_is_not_taken_without_leave():
    seen = []
    with pytest.raises(ResourceError, match="declined"):
        run_stepping_down(run_that_fits("cpu", seen), Recorder(answer=False))
    assert "cpu" not in seen


def test_on_the_cpu_there_is_no_cpu_to_go_to():
    recorder, seen = Recorder(), []
    with pytest.raises(ResourceError, match="smallest steps"):
        run_stepping_down(run_that_fits("cpu", seen), recorder, on_cpu=True)
    assert recorder.asked == []


@pytest.mark.parametrize("fault", [Cancelled(), KeyError("x"), RuntimeError("shapes do not match")])
def test_other_faults_pass_at_once(fault):
    recorder = Recorder()

    def run(step):
        raise fault

    with pytest.raises(type(fault)):
        run_stepping_down(run, recorder)
    assert recorder.told == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_faults_of_memory_are_recognised(fault, expected):
    assert looks_out_of_memory(fault) is expected


def test_torchs_own_class_is_recognised():
    torch = pytest.importorskip("torch")
    assert looks_out_of_memory(torch.OutOfMemoryError("x"))


def test_every_option_of_the_ladder_is_a_setting_of_the_inference():
    from dataclasses import fields

    from MedSAM3Core.inference.settings import InferenceSettings

    known = {field.name for field in fields(InferenceSettings)}
    assert {name for step in LADDER for name in step.options} <= known
