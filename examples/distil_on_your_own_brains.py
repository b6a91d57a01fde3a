# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Distil on your own brains
#
# You have volumes of your own and want a small network that reconstructs them from undersampled
# k-space. This takes a folder of volumes, trains a teacher and two students, and looks at what the
# student does to a head that it has not seen.

# %%
import os
from pathlib import Path

import numpy as np

import kdmri_edge as ke

# %% [markdown]
# ## The data
#
# A folder with one file for each volume, in any of the [formats](../docs/reference/formats.md).
# Volumes are split by subject, so say who is who: `sub-NN_..._CONTRAST`, as in BIDS. Your own
# folder goes here:
#
#     data = Path("brains")
#
# So that this page runs anywhere, we draw phantom heads instead. The sizes are small, too: all of
# it takes about a minute, and the figures at the end only show that it works.
# `KDMRI_EXAMPLE_SMALL=1` makes it smaller still, for the tests.

# %%
SMALL = bool(os.environ.get("KDMRI_EXAMPLE_SMALL"))
MATRIX = 32 if SMALL else 96
SLICES = 2 if SMALL else 8

work = Path("tutorial")
data = work / "brains"
data.mkdir(parents=True, exist_ok=True)
for number in range(6):
    head = ke.data.phantom_volume(7, index=number, slices=SLICES, matrix=MATRIX)
    ke.write(data / f"sub-{number:02}_T1w.nii.gz", head.image)

print(*(path.name for path in sorted(data.iterdir())))

# %% [markdown]
# ## The mask
#
# The mask is the one that your scanner uses. It has one value for each line along phase encode,
# with zero frequency at index 0 ([Choose a mask](../docs/how-to/choose-a-mask.md)). Here one of 4x
# is drawn, with a density that falls off from a fully sampled centre.

# %%
mask = ke.physics.variable_density_lines(MATRIX, 4, centre_lines=8)
print(f"{mask.samples.sum()} of {MATRIX} lines: {mask.nominal_acceleration:.2f}x")

# %% [markdown]
# ## The training
#
# Three networks are trained: the teacher, the student, and the student without a teacher for as
# many steps, which says what distillation was worth. Leave `assignments` out for the recipe's full
# number of steps: hours on a CPU. A run that was interrupted goes on with `resume=True`.

# %%
STEPS = 4 if SMALL else 60
run = ke.distill(
    teacher="dccnn-d5c5",
    student="dccnn-d3c5",
    data=data,
    mask=mask,
    assignments=(
        f"teacher_steps={STEPS}",
        f"imitation_steps={STEPS}",
        f"validate_every={STEPS}",
        "optim.warmup=2",
        f"batches.strip={MATRIX // 2}",
    ),
    out=work / "run",
)
print(run.roles())

# %% [markdown]
# ## A head that no network has seen
#
# `reconstruct` takes k-space as a NumPy array and returns images in its unit. Left to itself,
# `load` exports a network once for the fastest runtime of the machine; for a single look PyTorch
# will do.

# %%
head = ke.data.phantom_volume(8, slices=SLICES, matrix=MATRIX).image
kspace = ke.physics.image_to_kspace(head) * mask.samples[:, None]
zero_filled = np.abs(ke.physics.kspace_to_image(kspace))
print(f"zero-filled  {ke.metrics.psnr(head, zero_filled):5.2f} dB")
for role in run.roles():
    with ke.load(run.network(role), backend="torch") as net:
        image = net.reconstruct(kspace, mask=mask)
    print(f"{role:12} {ke.metrics.psnr(head, image):5.2f} dB")

# %% [markdown]
# ## Next
#
# - [Export it and ship it to a Jetson](export_and_ship_to_a_jetson.py).
# - Compare all of it on your test subjects: [Read a report](read_a_report.py).
# - On the command line the same is `kdmri-edge distill --data brains --acceleration 4 --out
#   runs/mine`.
