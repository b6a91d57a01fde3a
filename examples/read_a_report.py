# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Read a report
#
# You have a teacher and a student, and want to know what each costs on this machine and which
# variant to ship. A benchmark runs every network in every runtime and precision, each in a process
# of its own, on the same volumes.

# %%
import os
from pathlib import Path

import kdmri_edge as ke
from kdmri_bench.planning.settings import BenchSettings

SMALL = bool(os.environ.get("KDMRI_EXAMPLE_SMALL"))
work = Path("tutorial")
work.mkdir(exist_ok=True)

# %% [markdown]
# ## What is compared
#
# The package's teacher in float32 and its student in int8, both for OpenVINO. A checkpoint or a
# run stands here as well; then every runtime and precision of the machine has its row, which takes
# minutes.

# %%
names = ("dccnn-d5c5@brain-4x", "dccnn-d3c5@brain-4x")
if SMALL:  # a quarter of the pixels
    names = ("dccnn-d5c5-complex@measured-4x", "dccnn-d3c5-complex@measured-4x")
teacher = ke.export(names[0], target="openvino", out=work / "teacher")
student = ke.export(names[1], target="openvino", precision="int8", out=work / "student")

# %% [markdown]
# ## Measure
#
# Give your test volumes: a folder, or volumes that `ke.read` returned. Of a folder that follows
# the run's split only the test subjects are measured. Phantom heads stand in for them here, few
# and with few repetitions; leave `settings` out for a quick report, or take `settings="full"` for
# figures that are published.

# %%
settings = BenchSettings(
    samples=2 if SMALL else 10,
    warmup=1,
    rounds=1 if SMALL else 2,
    end_to_end=2,
    seconds=None,
    every_way=False,
    plain_export=False,
    peaks_s=0,
)
with ke.load(student) as net:
    matrix = net.matrix
volumes = [
    ke.data.phantom_volume(5, index=number, slices=1 if SMALL else 4, matrix=matrix)
    for number in range(2)
]
report = ke.benchmark([teacher, student], data=volumes, settings=settings)

# %% [markdown]
# ## The table

# %%
print(report.table())

# %% [markdown]
# How to read it:
#
# - **PSNR, SSIM** are means over volumes, from that runtime's own output. ± is the deviation
#   between volumes, which says how different the volumes are, and nothing about how certain the
#   difference between two networks is.
# - **p50** is the median time of one slice, in the network alone; **p90** what 9 of 10 slices
#   keep. What differs by less than the scatter between rounds, which the notes give, is not told
#   apart.
# - **peak** is the memory of the row's process, loading included; in parentheses what the runtime
#   added.
# - **int8 15/25** means that 15 of 25 layers really computed in integers.
# - A row without figures has its reason below the table.

# %% [markdown]
# ## What int8 and the smaller network cost
#
# Compare volume by volume: the same volumes went through both, so that what is hard about a volume
# drops out. Where the teacher was measured in PyTorch, the report has these paired differences
# with a bootstrap interval over subjects (`row.to_teacher`).

# %%
measured = [row for row in report.rows if row.latency]
reference = measured[0]
for row in measured:
    lost = [
        ours["psnr"] - theirs["psnr"]
        for ours, theirs in zip(row.volumes, reference.volumes, strict=True)
    ]
    print(f"{row.key:32} {row.latency['p50_ms']:6.1f} ms ", *(f"{dB:+.2f} dB" for dB in lost))

# %% [markdown]
# ## Plots, page and files
#
# In a notebook, `report` shows itself as a page and `report.pareto()` as a plot: quality against
# latency, with a line through the variants that no other beats in both.
#
# `save` writes the page (`report.html`, which loads nothing and can be mailed), Markdown, CSV,
# JSON and the picture. `kdmri-edge select report --max-latency 30ms --max-loss 0.35dB` picks the
# smallest variant that keeps your limits, and `kdmri-edge bench --compare before/report.json
# report/report.json` flags what became worse.

# %%
assert report.pareto().startswith("<svg")
print(*(path.name for path in report.save(work / "report").values()))
