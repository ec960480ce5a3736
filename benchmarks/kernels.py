"""The kernels through their public functions, against their peers, in one process.

    python benchmarks/kernels.py [--only loss,sort,sliced,null,closed,rank,affine,updates,quadratic,steps]
                                 [--json FILE] [--picture FILE]

All rivals of a case take turns over several rounds; in its turn each is called a few times in a row, so that everyone
is measured warm, and the first call does not count. Both the minimum and the median are kept, and ratios are those of
minima: how many times as long as lineas. Rivals that take very long do a part of the work, and their time is scaled
(marked ~); a second for each rival is enough, in at least three rounds. `copy` is what `ndarray.copy`, on one
thread, takes for the bytes that must move: its ratio is the share of that bandwidth at which lineas runs.
"""

import argparse
import json
import os


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GROUPS", help="some groups of cases, separated by commas")
    parser.add_argument("--threads", type=int, default=2, help="of lineas, torch and BLAS (default 2)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: does it run at all?")
    parser.add_argument("--json", metavar="FILE", help="write all figures, and what the machine is")
    parser.add_argument("--picture", metavar="FILE", help="draw time against n; alone unless --only is given")
    return parser.parse_args()


def report(result: dict) -> None:
    print(f"\n{result['case']}")
    for name, row in result["figures"].items():
        mark = "~" if row["scale"] != 1 and name != "copy" else " "
        line = f"  {name:<27}{mark}{1e3 * row['minimum']:11.3f} {1e3 * row['median']:11.3f} {row['ratio']:9.2f}x"
        if row["goal"]:
            line += f"   goal {row['goal']:g}x: {'met' if row['met'] else 'NOT MET'}"
        if name == "lineas" and result["limit"]:
            line += f"   goal {result['limit']:g} s: {'met' if result['met'] else 'NOT MET'}"
        print(line, flush=True)


def main() -> None:
    asked = arguments()
    # Before NumPy and torch are loaded. Compiling in this process leaves no workers that could disturb.
    os.environ |= {"OPENBLAS_NUM_THREADS": str(asked.threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    import _cases
    import _timing
    import torch

    torch.set_num_threads(asked.threads)
    plan = _cases.Plan(asked.threads, asked.quick)
    names = asked.only.split(",") if asked.only else [] if asked.picture else list(_cases.GROUPS)
    if unknown := set(names) - set(_cases.GROUPS):
        raise SystemExit(f"--only: expected some of {', '.join(_cases.GROUPS)}; got {', '.join(sorted(unknown))}")
    facts = _timing.machine(asked.threads)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if not plan.compiles:
        print("without torch.compile: " + ("--quick" if asked.quick else "no C++ compiler"))
    print(f"{'milliseconds':<30}{'minimum':>11} {'median':>11} {'to lineas':>10}")
    results = []
    for name in names:
        for case in _cases.GROUPS[name](plan):
            _timing.check(case)
            results.append(_timing.race(case, *(1, 0.0) if asked.quick else (asked.rounds, 0.03)))
            report(results[-1])
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"machine": facts, "cases": results}, file, indent=1)
    if asked.picture:
        import _picture

        _picture.draw(asked.picture, facts, quick=asked.quick)


if __name__ == "__main__":
    main()
