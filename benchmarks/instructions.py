"""How many instructions four fixed cases of the kernels take: a figure that a busy machine does not change.

    python benchmarks/instructions.py [--update]

Needs a C compiler and valgrind, no Python package. Counts more than 5% off those in instructions.json, up or down, are
an error: look why, then `--update`. They depend on the compiler and on the clone that the loops run in (valgrind has no
AVX-512), so counts are compared only where these are the recorded ones.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECORD = HERE / "instructions.json"
KERNELS = HERE.parent / "csrc" / "kernels"
FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fopenmp"]  # as setup.py has them
CASES = {
    "loss": "loss and gradient, 32 x 1024 units",
    "affine": "map and pooling, forward and backward, (4, 16, 512)",
    "prox": "proximal step, 4096 units in 4 groups",
    "solve": "model of a step and its minimum, 12,288 units, 8 moves",
}
REPETITIONS, TOLERANCE = 4, 0.05


def output(*command: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def count(program: Path, case: str, repetitions: int) -> int:
    profile = program.with_suffix(".callgrind")
    valgrind = ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={profile}")
    output(*valgrind, program, case, str(repetitions))
    return int(re.findall(r"^summary: (\d+)", profile.read_text(), re.MULTILINE)[0])


def measure(compiler: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "instructions"
        sources = [HERE / "instructions.c", *sorted(KERNELS.glob("*.c"))]
        output(compiler, *FLAGS, f"-I{KERNELS}", "-o", program, *sources, "-lm")
        clone, version = output("valgrind", "-q", program).splitlines()
        counts = {case: (count(program, case, REPETITIONS) - count(program, case, 0)) // REPETITIONS for case in CASES}
    return {"compiler": version, "flags": FLAGS, "clone": clone, "counts": counts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="make what is counted now the record")
    update = parser.parse_args().update
    compiler = os.environ.get("CC", "cc")
    for needed in (compiler, "valgrind"):
        if shutil.which(needed) is None:
            print(f"no {needed}: nothing counted")
            return 0
    now, record = measure(compiler), json.loads(RECORD.read_text()) if RECORD.exists() else {"counts": {}}
    comparable = all(now[key] == record.get(key) for key in ("compiler", "flags", "clone"))
    print(f"compiler {now['compiler']}, {now['clone']} clone")
    worst = 0.0
    for case, text in CASES.items():
        line = f"{text:<55}{now['counts'][case]:>12,}"
        if comparable and case in record["counts"]:
            change = now["counts"][case] / record["counts"][case] - 1
            worst = max(worst, abs(change))
            line += f"{change:+9.2%}"
        print(line)
    if update:
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
    elif not comparable:
        print(f"not compared: the record is of compiler {record.get('compiler')}, {record.get('clone')} clone")
    elif worst > TOLERANCE:
        print(f"more than {TOLERANCE:.0%} off {RECORD.name}: look why; --update records the new counts")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
