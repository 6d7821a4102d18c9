"""The table, what it says about the floors and targets, and a plot."""

import datetime
import json
import os
import pathlib
import platform
import statistics

from drive import RUN, median

# Case, ours, whose figure it is compared with, key, floor, target, whether more is better.
GOALS = [
    ("a", "voicegate", "nginx", "rate", 0.60, 0.75, True),
    ("a", "voicegate", "envoy", "rate", 1.4, 1.7, True),
    ("a", "voicegate", "gin", "rate", None, 2.8, True),
    ("b", "voicegate", "haproxy", "rate", 0.80, 1.0, True),
    ("b", "voicegate", "envoy", "rate", 1.7, 2.2, True),
    ("b", "voicegate", "gin (whole, Redis)", "rate", 3.0, 4.0, True),
    ("c", "voicegate (chain)", "gin (whole, Redis)", "rate", 2.5, 3.3, True),
    ("c", "voicegate (whole)", "gin (whole, Redis)", "rate", 2.5, 3.3, True),
    ("d", "voicegate", "nginx", "p99", 3.0, 2.0, False),
    ("d", "voicegate", None, "rss", 60, 45, False),
    ("d", "voicegate", "nginx", "cpu", None, 1.1, False),
    ("d", "voicegate", "nginx", "first_p99", None, 3.0, False),
    ("d5", "voicegate", None, "rss", 300, 225, False),
    ("d5", "voicegate", None, "failed", 0, 0, False),
    ("dn", "voicegate", "nginx (plain stream)", "p99", 5.0, 3.0, False),
    ("e", "voicegate", "direct", "p99", 3.0, 2.0, False),
    ("e", "voicegate", None, "rss", None, 60, False),
    ("f", "10,000 routes", "10 routes", "rate", 0.95, 0.98, True),
    ("n", "fixed answer, 2", "fixed answer, 1", "cpu_us", 1.11, 1.05, False),
    ("n", "plain, 2", "plain, 1", "cpu_us", 1.11, 1.05, False),
    ("n", "chain, 2", "chain, 1", "cpu_us", 1.11, 1.05, False),
    ("h", "reloading", "without", "rate", 0.95, 0.97, True),
    ("h", "reloading", None, "failed", 0, 0, False),
    ("s", "voicegate", None, "start_ms", 500, 300, False),
    ("s", "voicegate", None, "idle", 40, 30, False),
    ("k", "voicegate", None, "rss_now", 60, 60, False),
]
WORDS = dict(rate="requests/s", cpu_us="CPU µs a request", p99="p99", cpu="CPU", rss="peak MiB", rss_now="MiB", first_p99="first event p99", failed="failures",
             start_ms="ms to the first connection", idle="MiB at rest")
COLUMNS = [("rate", "requests/s", "{:,.0f}"), ("cpu_us", "CPU µs", "{:.1f}"), ("cpu", "CPU", "{:.0%}"), ("p50", "p50 µs", "{:,.0f}"),
           ("p99", "p99 µs", "{:,.0f}"), ("first_p99", "first p99 µs", "{:,.0f}"), ("rss", "peak MiB", "{:.0f}"),
           ("rss_now", "MiB", "{:.0f}"), ("start_ms", "start ms", "{:.0f}"), ("idle", "idle MiB", "{:.0f}"), ("failed", "failed", "{:.0f}")]


def table(rows):
    """A case as Markdown; the range of the rounds stands behind the first figure."""
    keys = [column for column in COLUMNS if any(column[0] in row for runs in rows.values() for row in runs)]
    lines = ["| | " + " | ".join(title for _, title, _ in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for index, (key, _, form) in enumerate(keys):
            values = [row[key] for row in runs if key in row]
            if not values:
                cells.append("–")
                continue
            cell = form.format(statistics.median(values))
            if index == 0 and len(values) > 1:
                cell += f" ({form.format(min(values))}–{form.format(max(values))})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(results):
    """Each floor and target: reached or not, with the range of the rounds' ratios."""
    lines = ["| case | figure | measured (rounds) | floor | target | |", "|---|---|---|---|---|---|"]
    for case, ours, other, key, floor, target, more in GOALS:
        rows = results.get(case, {}).get("rows", {})
        mine, theirs = rows.get(ours), rows.get(other) if other else None
        if not mine or (other and not theirs):
            continue
        value = median(mine, key)
        rounds = [row[key] for row in mine if key in row]
        if other:
            value /= median(theirs, key) or float("nan")
            rounds = [a[key] / b[key] for a, b in zip(mine, theirs) if b.get(key) and key in a]

        def holds(bound):
            return bound is not None and (value >= bound if more else value <= bound)

        verdict = "**target**" if holds(target) else "floor" if holds(floor) else "**not reached**"
        if floor is None and not holds(target):
            verdict = "target not reached"
        of = f"{WORDS[key]} of {other}'s" if other else WORDS[key]
        sign = "≥" if more else "≤"
        shown = [f"{sign} {bound:g}" if bound is not None else "" for bound in (floor, target)]
        spread = f" ({min(rounds):.2f}–{max(rounds):.2f})" if len(rounds) > 1 else ""
        name = ours if ours == "voicegate" else f"{ours}"
        lines.append(f"| {case} {results[case]['about']} | {name}: {of} | {value:.2f}{spread} | {shown[0]} | {shown[1]} | {verdict} |")
    return "\n".join(lines)


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}"


def plot(results, path):
    """Rates of all cases that have them, one panel each."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = {case: found for case, found in results.items()
             if any("rate" in row for runs in found["rows"].values() for row in runs)}
    if not shown:
        return
    figure, panels = pyplot.subplots(len(shown), 1, figsize=(8, 1 + 1.6 * len(shown)), squeeze=False)
    for panel, (case, found) in zip(panels[:, 0], shown.items()):
        names = list(found["rows"])
        values = [median(found["rows"][name], "rate") for name in names]
        spans = [[row["rate"] for row in found["rows"][name]] for name in names]
        errors = [[v - min(s) for v, s in zip(values, spans)], [max(s) - v for v, s in zip(values, spans)]]
        colours = ["#c8553d" if "voicegate" in name or "routes" in name or "reload" in name else "#8d99ae" for name in names]
        panel.barh(names, values, xerr=errors, color=colours)
        panel.invert_yaxis()
        panel.set_title(f"{case}: {found['about']} (requests/s)", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path)


def write(results, about, out):
    """Writes RESULTS.md and its plot."""
    today = datetime.date.today().isoformat()
    text = [f"# Results\n\nMeasured on {machine()}; {about} Written {today} by `bench/run`; do not edit.\n",
            "Ratios within one run are what counts. Where a figure has a range, it is that of the rounds.\n",
            "## Floors and targets\n", goals(results), ""]
    for case, found in results.items():
        text += [f"## ({case}) {found['about']}\n", f"{found['when']}.\n", table(found["rows"]), ""]
    plot(results, out.with_suffix(".svg"))
    text += [f"![requests per second]({out.with_suffix('.svg').name})", ""]
    out.write_text("\n".join(text))
    (RUN / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    import sys

    print(goals(json.loads(pathlib.Path(sys.argv[1]).read_text())))
