"""Reads damaged files with every reader: ``python -m tests.fuzz --inputs=10000``.

Each input is a whole file with one damage, a function of the seed. A reader may refuse it with a
one-line `InputError`, return what the whole file holds, or, of files without checksums, something
else of the right types. Everything else is a fault: another exception, a text of several lines or
a thousand characters, a warning, more than 10 s, more than 1 GiB, a process that ends.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import multiprocessing
import multiprocessing.connection
import random
import resource
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS = 10
MEMORY = 2**30
#: Time to start a process and to read the whole input.
START = 300

#: Of one input: its number, what became of it, and what to say about it.
Outcome = tuple[int, str, str]


@dataclasses.dataclass
class Result:
    """What became of the inputs of a reader.

    Attributes:
        counts: Inputs by outcome: refused, equal, changed, or a kind of fault.
        faults: The number of each input at fault, and what happened.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: dict[int, str] = dataclasses.field(default_factory=dict)


def run(target: str, numbers: Sequence[int]) -> Result:
    """Reads some inputs of a target, each by its number, in a process of its own."""
    result, numbers = Result(), list(numbers)
    while numbers:
        ended = "ended the process"
        for number, kind, text in _from_process(target, numbers):
            numbers.remove(number)
            result.counts[kind] += 1
            if kind not in ("refused", "equal", "changed"):
                result.faults[number] = f"{kind}: {text}"
        if numbers:  # the first of them did not come back
            number = numbers.pop(0)
            result.counts["lost"] += 1
            result.faults[number] = f"{ended}, or took more than {SECONDS} s"
    return result


def _from_process(target: str, numbers: Sequence[int]) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(target, numbers, theirs), daemon=True)
    process.start()
    theirs.close()
    wait, started = START, False
    try:
        while ours.poll(wait):
            outcome = ours.recv()
            started = True
            wait = SECONDS if outcome is None else START
            if outcome is not None:
                yield outcome
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    if not started:
        raise RuntimeError(f"{target}: the whole input cannot be read")


def _work(target: str, numbers: Sequence[int], pipe: multiprocessing.connection.Connection) -> None:
    from tests.fuzz.mutate import mutate
    from tests.fuzz.targets import TARGETS, digest

    warnings.simplefilter("error")
    reader = TARGETS[target]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "input"
        folder.mkdir()
        reader.make(folder)
        whole = digest(reader.read(folder))
        files = sorted({path for pattern in reader.files for path in folder.glob(pattern)})
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in numbers:
            rng = random.Random(f"{target} {number}")
            file = rng.choice(files)
            before = file.read_bytes()
            content, told = mutate(before, file.name, rng)
            file.write_bytes(content)
            pipe.send(None)  # the time to read begins
            kind, text = _try(reader, whole, folder)
            file.write_bytes(before)
            missed = kind == "changed" and told and reader.checked
            pipe.send((number, "unnoticed" if missed else kind, text))


def _try(reader: Any, whole: Any, folder: Path) -> tuple[str, str]:
    from jaxattn.errors import InputError
    from tests.fuzz.targets import digest

    try:
        found = digest(reader.read(folder))
    except InputError as error:
        text = str(error)
        causes = []
        cause: BaseException | None = error
        while cause := cause.__cause__ if cause else None:
            causes.append(cause)
        if any(isinstance(each, MemoryError) for each in causes):
            return "memory", text
        if "\n" in text or len(text) > 1500:
            return "long", text[:3000]
        return "refused", text
    except Exception as error:
        return type(error).__name__, str(error)[:300]
    return ("equal" if found == whole else "changed"), ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all targets and prints a table; returns the number of faults."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="over all readers")
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=2, help="readers at a time")
    parser.add_argument("--only", default="", help="part of the name of a reader")
    given = parser.parse_args(arguments)
    names = [name for name in TARGETS if given.only in name]
    each = -(-given.inputs // len(names))
    numbers = range(given.seed, given.seed + each)
    faults = 0
    print(f"{'reader':22}{'refused':>9}{'equal':>7}{'changed':>9}{'faults':>8}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for name, result in zip(names, pool.map(lambda n: run(n, numbers), names), strict=True):
            counts = result.counts
            row = (counts["refused"], counts["equal"], counts["changed"], len(result.faults))
            print(f"{name:22}{row[0]:9}{row[1]:7}{row[2]:9}{row[3]:8}", flush=True)
            for number, text in result.faults.items():
                print(f"  {name} {number}: {text}", flush=True)
            faults += len(result.faults)
    print(f"{each * len(names)} inputs, {faults} faults")
    return faults
