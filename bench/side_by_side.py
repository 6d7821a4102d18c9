"""Runs cases side by side: `side_by_side.py [--rounds N] [--seconds N] [--out FILE] [CASE …]` (see README.md)."""

import argparse
import json
import pathlib
import time

import cases
import report
from drive import HERE, RUN, say


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="letters of the cases (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8, help="of load in each round")
    parser.add_argument("--only", help="names of gateways, comma-separated (default: all)")
    parser.add_argument("--add", action="store_true", help="cases of earlier runs stay in the results")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "RESULTS.md")
    asked = parser.parse_args()
    RUN.mkdir(parents=True, exist_ok=True)
    about = "the gateway alone on CPU 1 with one worker, all else on CPU 0."
    earlier = RUN / "results.json"
    results = json.loads(earlier.read_text()) if asked.add and earlier.exists() else {}
    with cases.upstreams():
        plan = cases.plan(asked.seconds)
        order = list(plan)
        for case, (title, gateways) in plan.items():
            if asked.cases and case not in asked.cases:
                continue
            names = [name for name in gateways if not asked.only or name in asked.only.split(",")]
            rows = {name: [] for name in names}
            when = f"{time.strftime('%Y-%m-%d %H:%M')}, {asked.rounds} rounds of {asked.seconds} s"
            for number in range(asked.rounds):
                # Whoever comes first in one round comes last in the next.
                for name in names if number % 2 == 0 else reversed(names):
                    row = gateways[name]()
                    rows[name].append(row)
                    say(f"{case} round {number + 1}: {name:22} " + json.dumps({k: round(v, 2) for k, v in row.items()}))
            results[case] = dict(about=title, when=when, rows=rows)
            # After each case: a run takes most of an hour.
            report.write({case: results[case] for case in order if case in results}, about, asked.out)
    print(report.goals(results))


if __name__ == "__main__":
    main()
