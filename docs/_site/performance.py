"""The page of measurements, from the files in benchmarks/results: ``python docs/_site/performance.py`` writes it."""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

HEADER = """# Performance

Every figure below comes from a file in `benchmarks/results`, which a script of `benchmarks` wrote; `docs/_site/performance.py`
makes this page of them. A row says on which machine it was measured, and `git log benchmarks/results/FILE` with which commit: the
code may have become faster or slower since. Seconds include the start of a process, reading,
registration and resampling, unless a table says otherwise. [Comparison](comparison.md) has the commands of the other
programs, [parallel runs](parallel.md#measured) and [GPUs](gpu.md) what else was measured, and how.

"""
NAMES = {
    "greedy_tuned": "greedy, more iterations",
    "niftyreg": "NiftyReg",
    "before": "before registration",
    "ants": "ANTs SyN (mutual information)",
    "ants_cc": "ANTs SyN (cross-correlation)",
    "fireants": "FireANTs, CPU",
    "fireants_cuda": "FireANTs, GPU",
    "lncc": "LNCC, exact gradient",
    "lncc exact": "LNCC, exact gradient",
    "lncc center": "LNCC, centre window",
    "mse": "MSE",
    "mi": "MI",
    "ngf": "NGF",
}


def write(path, results):
    """Write the page. results: the folder of the files."""
    parts = [HEADER]
    for make in (
        _heads,
        _many_heads,
        _microscopy,
        _modalities,
        _iterations,
        _several_gpus,
        _cores,
        _out_of_core,
        _stacks,
        _large,
        _training,
        _steps,
    ):
        title, text, columns, rows, files = make(lambda name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")))
        parts.append(f"## {title}\n\n{text}\n\n{_table(columns, rows)}\n\n{_source(files)}\n\n")
    path.write_text("".join(parts), encoding="utf-8")


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join("" if v is None else str(v) for v in line) + " |" for line in lines)


def _source(files):
    return "From " + ", ".join(f"`{name}.json`" for name in files) + "."


def _name(row):
    label = NAMES.get(row["program"], row["program"])
    return f"{label} ({row['version']})" if "version" in row else label


def _megabytes(row):
    return round(row["peak_rss"] / 1e6) if "peak_rss" in row else None


def _heads(read):
    rows = [*read("brain"), *read("brain_slow_opponents")[2:], *read("brain_gpu")[1:]]
    table = [
        [_name(r), r["dice"], r.get("wall"), r.get("folded_percent"), _megabytes(r), r["machine"].replace(", Linux", "")
         + (", one H200" if "16 cores" in r["machine"] else "")]
        for r in rows
    ]  # fmt: skip
    text = (
        "An OASIS brain atlas onto the MNI152 brain, 1 mm, 12 structures, `--preset brain`. FireANTs on the CPU and ANTs "
        "were measured while the machine did other work: upper bounds of their time."
    )
    files = ["brain", "brain_slow_opponents", "brain_gpu"]
    return (
        "One pair of brains",
        text,
        ["program", "mean Dice", "seconds", "folded, %", "peak memory, MB", "machine"],
        table,
        files,
    )


def _many_heads(read):
    pairs = [r for r in read("brains_2mm") if r["kind"] == "pair" and r["set"] == "report" and "dice" in r]
    table = []
    for program in ("daskreg", "greedy", "greedy_tuned", "niftyreg", "fireants", "ants", "ants_cc"):
        own = [r for r in pairs if r["program"] == program]
        dice = [r["dice"] for r in own]
        folded = mean(r["folded_percent"] for r in own)
        table.append([_name(own[0]), len(own), f"{mean(dice):.3f} +- {stdev(dice):.3f}", f"{folded:.2g}", own[0]["machine"]])
    text = (
        "Labelled heads and brains at 2 mm which no preset was chosen on, both directions; mean and standard "
        "deviation over the pairs that a program has been run on."
    )
    return "Many heads", text, ["program", "pairs", "mean Dice", "folded, %", "machine"], table, ["brains_2mm"]


def _microscopy(read):
    table = [
        [_name(r), *(r.get("deformable", r).get(k) for k in ("ncc", "lncc")), r.get("wall"), _megabytes(r), r["machine"]]
        for r in read("microscopy")
    ]
    text = (
        "Two rounds of expansion microscopy, 149 x 241 x 456 voxels. daskreg begins from the stores alone (`--preset "
        "lightsheet`), greedy from the right shift."
    )
    columns = ["program", "correlation", "squared LNCC", "seconds", "peak memory, MB", "machine"]
    return "Light microscopy", text, columns, table, ["microscopy"]


def _modalities(read):
    table = []
    for r in read("multimodal"):
        after = r["evaluate"]["landmarks"]["after"]["mean"] if "evaluate" in r else r.get("tre_mean_mm")
        table.append([_name(r), None if after is None else f"{after:.2f}", r.get("wall"), r["machine"]])
    text = "T1 onto EPI of one head, rigid: mean error of 2,000 landmarks."
    return "Two modalities", text, ["program", "error, mm", "seconds", "machine"], table, ["multimodal"]


def _iterations(read):
    rows = [r for r in read("gpu_iterations") + read("gpu_iterations_fireants") if "ms" in r]
    table = [
        [NAMES.get(r["case"], r["case"]), f"{r['edge']}^3", r.get("storage", "float32"), f"{r['ms']:.2f}", r.get("fireants_ms"),
         r["bytes_per_voxel"], r["device"], r.get("commit")]
        for r in rows
    ]  # fmt: skip
    text = (
        "An iteration of the deformable stage on one GPU, and of FireANTs 1.5 from PyPI in the same process where that was run, "
        "with older code."
    )
    columns = ["similarity", "voxels", "storage", "ms", "FireANTs, ms", "bytes a voxel", "GPU", "code"]
    return "An iteration on a GPU", text, columns, table, ["gpu_iterations", "gpu_iterations_fireants"]


def _several_gpus(read):
    table = [
        [NAMES.get(r["loss"], r["loss"]), r["gpus"], "x".join(map(str, r["shape"])), r.get("comm", "ucx"), r["ms"],
         f"{100 * r['efficiency']:.0f}", r.get("commit")]
        for r in read("gpu_scaling")
    ]  # fmt: skip
    text = "512^3 voxels a GPU, H200s of one machine."
    columns = ["similarity", "GPUs", "voxels", "link", "ms an iteration", "efficiency, %", "code"]
    return "Several GPUs", text, columns, table, ["gpu_scaling"]


def _cores(read):
    rows = [r for r in read("scaling") if r.get("part") == "strong"]
    table = [
        [NAMES.get(r["loss"], r["loss"]), r["workers"], r["threads"], r["residency"], f"{1000 * r['seconds']:.0f}",
         f"{r['seconds'] / r['base_seconds']:.2f}"]
        for r in rows
    ]  # fmt: skip
    text = f"160^3 voxels, on {rows[0]['machine']}; three and four workers share two cores."
    columns = ["similarity", "workers", "threads a worker", "moving image", "ms an iteration", "of the time of one"]
    return "Workers on two cores", text, columns, table, ["scaling"]


def _out_of_core(read):
    table = [
        [NAMES.get(r["loss"], r["loss"]), "x".join(map(str, r["shape"])), r["storage"], r["state"], r["images"], r["slab"],
         f"{r['peak'] / 1e9:.1f}" if "pool_gb" in r else None, f"{r['ms']:.1f}", r.get("over_bound")]
        for r in read("out_of_core")["rows"]
    ]  # fmt: skip
    text = (
        "One H200, fields and images on the GPU (`device`), in the machine's memory (`host`) or on disk; the bits are the same "
        "where that was compared. Peak: GB of the GPU's memory, of 20 that were allowed. The bound is the longest of an "
        "iteration on the GPU and of its transfers at the rates of the link and of the disk measured in the same run; MI reads "
        "the fields twice."
    )
    columns = ["similarity", "voxels", "storage", "fields", "images", "planes of a slab", "peak, GB", "ms an iteration",
               "times the bound"]  # fmt: skip
    return "Out of core", text, columns, table, ["out_of_core"]


def _stacks(read):
    table = [
        [r["case"].replace(" moving", "").replace(" fixed", " (fixed)"), r["gigabytes"], r["memory"], round(r["peak_rss"] / 1e6),
         *(round(r["seconds"][name]) for name in ("read", "optimise", "measure", "judge", "write")), round(r["wall"]),
         " and ".join(f"{n:.3g}" for n in r["decoded"]), r["error_um"], r["note"], r["machine"]]
        for r in read("stack")
    ]  # fmt: skip
    text = (
        "Stacks that stay in their files (`--images source`, [how](howto/memory.md#stacks-larger-than-memory-and-disk)): the "
        "moving image unless it says fixed, onto 200 x 250 x 312 voxels, rigid at scales 4 and 2. They compress well, so a codec "
        "does little. Decoded: how often a voxel of the fixed and of the moving image was. The error is the mean one of the "
        "corners against the known map; a voxel of the coarse image is 8 x 32 x 26 um."
    )
    columns = [
        "voxels",
        "GB",
        "memory allowed",
        "peak, MB",
        "read, s",
        "optimise, s",
        "measure, s",
        "judge, s",
        "write, s",
        "wall, s",
    ]
    return "Stacks larger than memory", text, [*columns, "decoded", "error, um", "", "machine"], table, ["stack"]


def _large(read):
    table = [
        [r["case"], r["workers"], r.get("loss", "mi"), r.get("storage", "float32"), r.get("memory"), *_seconds(r),
         r.get("tre_mean"), r.get("note"), r.get("commit")]
        for r in read("gigavoxel")
        if "limits GB/s" not in r
    ]  # fmt: skip
    text = (
        "From archive to archive, affine and deformable to full resolution, on H200s (a worker each) unless a row says "
        "otherwise. The error is the mean one of a known warp, in mm, which is 1.9 to 3.6 before."
    )
    columns = [
        "voxels",
        "workers",
        "similarity",
        "storage",
        "memory",
        "read, s",
        "optimise, s",
        "write, s",
        "total, s",
        "error",
        "",
        "code",
    ]
    return "Gigavoxels", text, columns, table, ["gigavoxel"]


def _seconds(row):
    return [f"{row['seconds'][name]:.1f}" for name in ("read", "optimise", "write", "total")]


def _size(row):
    return " x ".join(map(str, row["shape"])) if "shape" in row else f"{row['edge']}^3"


def _training(read):
    """Losses and samplers of daskreg.torch beside those of other packages."""
    rows, table = read("torch_losses"), {}
    for r in rows:
        if "ms" in r and "backward" in r["case"]:
            table.setdefault((r["case"], _size(r)), []).append(r)
    lines = []
    for (case, size), measured in table.items():
        own = next((r for r in measured if r["who"] == "daskreg"), None)
        others = sorted((r for r in measured if r["who"] != "daskreg"), key=lambda r: r["ms"])
        if own and others:
            best = others[0]
            name, ratio = case.replace(" forward + backward", ""), f"{best['ms'] / own['ms']:.1f}"
            other = f"{best['who']}: {best['ms']}"
            lines.append([name, size, own["ms"], other, ratio, own["extra_bytes_per_voxel"], best["extra_bytes_per_voxel"]])
    card = rows[0]
    text = (
        f"`benchmarks/torch_losses.py` on one {card['card']}, PyTorch {card['torch']}, copies at {card['copy TB/s']} TB/s: "
        "forward and backward passes, the median of 40. The fastest other implementation of the same run, of MONAI, fused-lncc, "
        "FireANTs, PyTorch's own operators with TF32 on and off, and `torch.compile`; bytes are those of the peak beyond the "
        "inputs. The file has all of them, and the [figure](../benchmarks/results/torch_losses.png) draws them. "
        "Below 256^3 the time of the host decides; grids of up to 2^23 points are left to PyTorch."
    )
    columns = ["operation", "voxels", "ms, daskreg", "ms, fastest other", "ratio", "bytes a voxel", "bytes, other"]
    return "Losses and samplers for training", text, columns, lines, ["torch_losses"]


def _steps(read):
    """Training steps of published networks."""
    rows = read("torch_training")
    steps = {}
    for r in rows:
        if "ms" in r:
            steps.setdefault((r["case"].removesuffix(" training step"), r["loss"]), {})[r["who"]] = r
    lines = []
    for (network, loss), of in steps.items():
        times = [of[who]["ms"] if who in of else "" for who in ("network", "original", "compiled", "daskreg", "daskreg, fused")]
        lines.append([network, loss, *times, f"{of['original']['ms'] / of['daskreg']['ms']:.2f}"])
    card = rows[0]
    text = (
        f"`benchmarks/torch_training.py` on one {card['card']}, PyTorch {card['torch']}: a step (forward pass, loss, "
        "regulariser, backward pass, Adam) of the published networks at 160 x 192 x 224, one pair, float32. *network*: "
        "without a loss, which is what no loss can save."
    )
    columns = ["network", "loss", "network, ms", "original loss", "compiled", "daskreg", "daskreg, fused", "original / daskreg"]
    return "Training steps", text, columns, lines, ["torch_training"]


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else root / "docs" / "performance.md", root / "benchmarks" / "results")
