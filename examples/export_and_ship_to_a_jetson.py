# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Export, and ship to a Jetson
#
# An export is a folder, a bundle: the graph, a manifest and a golden input and output. It is run
# and compared with PyTorch before it is written. This page exports a network for a CPU and for
# TensorRT, checks both, and packs the one for the Jetson.

# %%
import json
import os
import shutil
from pathlib import Path

import kdmri_edge as ke

SMALL = bool(os.environ.get("KDMRI_EXAMPLE_SMALL"))
work = Path("tutorial")
work.mkdir(exist_ok=True)

# %% [markdown]
# ## A network
#
# One of the package's trained networks; a run of your own (`runs/mine`) or a checkpoint stands
# here just as well.

# %%
network = "dccnn-d3c5-complex@measured-4x" if SMALL else "dccnn-d3c5@brain-4x"

# %% [markdown]
# ## For a workstation's CPU
#
# In int8 the convolutions are rounded, data consistency is not ([int8](../docs/concepts/int8.md)).
# The folder must not exist yet, or hold an earlier export.

# %%
bundle = ke.export(network, target="openvino", precision="int8", out=work / "student-ov")
print(sorted(path.name for path in bundle.path.iterdir()))

# %% [markdown]
# What a bundle says of itself: the mask, how far it is from PyTorch, what it was trained on.

# %%
manifest = bundle.manifest
print(manifest["mask"]["name"], manifest["precision"])
print(json.dumps(manifest["parity"], indent=1)[:600])

# %% [markdown]
# Run this again where the bundle has been copied to. On the command line it is `kdmri-edge verify
# FOLDER`.

# %%
checked = ke.runtime.verify_bundle(bundle.path)
for row in checked["rows"]:
    print(row["backend"], row["precision"], row["status"])

# %% [markdown]
# ## For a Jetson
#
# Target `trt` writes the graph as TensorRT takes it, in strongly typed ONNX, with two scripts that
# need nothing of this project. An engine runs only on the kind of GPU, and with the version of
# TensorRT, that built it, so it is built on the device; `builder="none"` leaves that to it.

# %%
folder = ke.export(
    network, target="trt", precision="fp16", builder="none", out=work / "student-trt"
).path
print(sorted(path.name for path in folder.iterdir()))
archive = shutil.make_archive(os.fspath(work / "student-trt"), "gztar", work, folder.name)
print(f"{Path(archive).name}: {Path(archive).stat().st_size / 1024:.0f} KiB")

# %% [markdown]
# Copy the archive to the device. There (JetPack brings TensorRT and its Python package):
#
#     tar xf student-trt.tar.gz && cd student-trt
#     python3 build_engine.py
#     python3 run_engine.py > row.json
#
# `run_engine.py` refuses an engine that does not reproduce the golden output, and prints its
# latency as a row of a benchmark's report. The README.md in the folder has JetPack's versions and
# the same with `trtexec`. We have built such engines ahead of time with TensorRT-RTX, and not yet
# run one on a Jetson.

# %% [markdown]
# ## Next
#
# [At the scanner](at_the_scanner.py): the bundle in the scanner's stream.
