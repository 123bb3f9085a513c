"""Reads thousands of damaged files in processes of their own, and says what came of each.

``python Testing/trust/fuzz.py --count 20000 --seed 1`` prints a table and the findings and ends with 1 if there are
any; ``--again KIND:NUMBER`` writes one case's file to the folder given by ``--keep`` and reads it with its traceback.

A case may end in two ways: the file is read, or one of the library's errors says in one sentence what is wrong with
it. Anything else is a finding: another exception, a process that ends, more than `CPU_SECONDS` of processor time, more
than `MEMORY` of memory, a sentence that is none, code from the file that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz_inputs import KINDS, Case, plan, seeds, write_case

CPU_SECONDS = 10.0
WALL_SECONDS = 300.0
START_SECONDS = 1800.0
"""For imports on a busy machine; only the cases are on trial."""
MEMORY = 512 * 2**20
ADDRESS_SPACE = 2**30
"""What the process may map beyond what it has before the first case; beyond it allocations fail."""
LONGEST = 1500
FINE = ("read", "sentence")


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        kind: Kind of input.
        number: Of the case in its kind.
        verdict: "read", "sentence", or a finding: "crash", "ended", "hang", "memory", "no sentence", "code".
        detail: Of a finding.
        seconds: Processor time.
        grown: Bytes by which the process grew while it read.
    """

    kind: str
    number: int
    verdict: str
    detail: str = ""
    seconds: float = 0.0
    grown: int = 0


def run(cases: Sequence[Case], jobs: int = 1) -> list[Result]:
    """Read the cases, each kind in its own processes, ``jobs`` at a time."""
    from concurrent.futures import ThreadPoolExecutor

    parts = [[case for case in cases if case.kind == kind] for kind in KINDS]
    with ThreadPoolExecutor(jobs) as pool:
        return [
            result for part in pool.map(lambda p: list(_run_kind(p)), filter(None, parts)) for result in part
        ]


def _run_kind(cases: Sequence[Case]) -> Iterator[Result]:
    """Results of one kind; a process that ends is blamed on its case, and a new one goes on behind it."""
    left = list(cases)
    while left:
        got = 0
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            for result in _run_child(left, folder):
                got += 1
                yield result
        left = left[got:]


def _run_child(cases: Sequence[Case], folder: str) -> Iterator[Result]:
    first = cases[0]
    command = [sys.executable, __file__, "--child", first.kind, str(first.number), str(cases[-1].number + 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder, "MEDSAM3_HOME": f"{folder}/home"}
    with subprocess.Popen(
        [*command, "--seed", str(first.seed), "--keep", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        done = 0
        for line in _lines(process):
            yield Result(**json.loads(line))
            done += 1
        process.kill()
        code = process.wait()
    if done < len(cases):
        hung = code in (-signal.SIGPROF, -signal.SIGKILL)
        verdict, detail = ("hang", "") if hung else ("ended", f"exit code {code}")
        yield Result(first.kind, cases[done].number, verdict, detail)


def _lines(process: subprocess.Popen) -> Iterator[bytes]:
    """Whole lines of the process until it ends or says nothing for `WALL_SECONDS`."""
    stream, buffer, patience = process.stdout, b"", START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(patience):
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return
            patience = WALL_SECONDS
            *lines, buffer = (buffer + chunk).split(b"\n")
            yield from (line for line in lines if line.startswith(b'{"kind"'))


def child(kind: str, first: int, end: int, seed: int, folder: Path) -> None:
    """Read cases one after the other and print a line for each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not taken for a result
    seeds(kind)  # imports and undamaged files come before the limits
    for one in seeds(kind):  # and so do the libraries' own first-use costs
        _warm(one, folder)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, end):
        result = try_case(Case(kind, number, seed), folder)
        print(json.dumps(result.__dict__), file=out, flush=True)


def _warm(seed: object, folder: Path) -> None:
    from MedSAM3Core.errors import MedSAM3Error

    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        for file, content in (*seed.company, (seed.name, seed.data)):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(content)
        try:
            seed.read(place / seed.name)
        except MedSAM3Error:
            return  # several of pydicom's files are damaged as they are


def try_case(case: Case, folder: Path) -> Result:
    """Read one damaged file under the limits."""
    from MedSAM3Core.errors import MedSAM3Error

    canary = folder / "canary"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        seed, path = write_case(case, Path(name), str(canary))
        _forget_peak()
        before, started = _status("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        verdict, detail = "read", ""
        try:
            seed.read(path)
        except MedSAM3Error as error:
            verdict, detail = _judge(error)
        except BaseException as error:  # a finding, whatever it is
            verdict, detail = "crash", f"{seed.name}: {type(error).__name__}: {str(error)[:200]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, grown = time.process_time() - started, _status("VmHWM") - before
    if canary.exists():
        canary.unlink()
        verdict, detail = "code", f"{seed.name}: code in the file ran"
    if verdict in FINE and grown > MEMORY:
        verdict, detail = "memory", f"{seed.name}: grew by {grown / 2**20:.0f} MiB"
    return Result(case.kind, case.number, verdict, detail, round(seconds, 4), max(grown, 0))


def _judge(error: BaseException) -> tuple[str, str]:
    """Whether an error of the library's is one sentence, and not one about memory that a small file cannot need."""
    text = str(error)
    if "\n" in text or len(text) > LONGEST or not text.rstrip().endswith((".", "!", "?")):
        return "no sentence", text[:300]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
            return "memory", f"asked for more than {ADDRESS_SPACE >> 20} MiB: {text[:200]}"
        cause = cause.__cause__
    return "sentence", ""


def _status(field: str) -> int:
    """Bytes that /proc says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a kind."""
    lines = [
        "| input | cases | read all the same | one sentence | findings | longest, s | most memory, MiB |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        own = [r for r in results if r.kind == kind]
        if own:
            count = Counter(r.verdict for r in own)
            bad = len(own) - count["read"] - count["sentence"]
            longest, most = max(r.seconds for r in own), max(r.grown for r in own) / 2**20
            lines.append(
                f"| {kind} | {len(own)} | {count['read']} | {count['sentence']} | {bad} | {longest:.2f} | {most:.0f} |"
            )
    return "\n".join(lines)


def again(kind: str, number: int, seed: int, folder: Path) -> None:
    """Write one case's file and read it, with the whole traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    one, path = write_case(Case(kind, number, seed), folder, str(folder / "canary"))
    print(path)
    print(one.read(path))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="This kind only.")
    parser.add_argument("--again", metavar="KIND:NUMBER", help="Read one case with its traceback.")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-case"), help="Folder for the file of --again."
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], int(given.child[1]), int(given.child[2]), given.seed, given.keep)
        return 0
    if given.again:
        kind, _, number = given.again.rpartition(":")
        again(kind, int(number), given.seed, given.keep)
        return 0
    cases = [case for case in plan(given.count, given.seed) if given.kind in (None, case.kind)]
    results = run(cases, given.jobs)
    print(table(results))
    findings = [r for r in results if r.verdict not in FINE]
    for one in findings:
        print(f"{one.verdict:12} {one.kind}:{one.number} {one.detail}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
