# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # At the scanner
#
# The scanner's host streams lines of k-space and wants images back, slice by slice. `kdmri-edge
# serve` speaks the MRD protocol that FIRE, OpenRecon and Gadgetron's clients speak. This page
# plays both sides on one machine: a multi-coil scan in an MRD file, the server, and the client.

# %%
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

import kdmri_edge as ke

SMALL = bool(os.environ.get("KDMRI_EXAMPLE_SMALL"))
work = Path("tutorial")
work.mkdir(exist_ok=True)

# %% [markdown]
# ## A bundle for any line mask
#
# The scanner chooses the lines, so the mask becomes an input of the graph.

# %%
bundle = ke.export("dccnn-d3c5@brain-any-mask", target="onnx", mask="input", out=work / "any-mask")
with ke.load(bundle) as net:
    print(net)
    matrix = net.matrix

# %% [markdown]
# ## A scan
#
# Yours comes from the scanner, or is a file that `kdmri-edge data convert` brings to MRD. Here a
# phantom is seen by four coils through a 4x mask, saved as any HDF5 dataset of k-space may be, and
# converted: the letters say what its axes are, s slice, c coil, h phase encode, w readout.

# %%
mask = ke.physics.variable_density_lines(matrix, 4, centre_lines=24)
head = ke.data.phantom_volume(3, slices=1 if SMALL else 4, matrix=matrix).image
coils = ke.data.coil_maps(4, matrix, matrix)
kspace = ke.physics.image_to_kspace(head[:, None] * coils) * mask.samples[:, None]
with h5py.File(work / "raw.h5", "w") as file:
    file["kspace"] = np.fft.fftshift(kspace, axes=(-2, -1)).astype(np.complex64)
scan = work / "scan.h5"
print(ke.data.convert(Path(f"{work}/raw.h5:kspace:schw"), scan))

# %% [markdown]
# ## The server
#
# On the scanner's network it is started once and stays: `kdmri-edge serve any-mask --port 9002`.
# It listens to this machine alone unless `--host` says otherwise.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "kdmri_edge"]
server = subprocess.Popen([*command, "serve", bundle.path, "--port", str(port), "--quiet"])
try:
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)

    # The client: `kdmri-edge send scan.h5 -o images.h5`; `--pace 4` sends a line every 4 ms.
    images = work / "images.h5"
    subprocess.run([*command, "send", scan, "-o", images, "--port", str(port)], check=True)
finally:
    server.terminate()
    server.wait()

# %% [markdown]
# ## The images
#
# They are those that the same bundle makes of the file: `serve`, `run` and the API share one road.

# %%
streamed = ke.read(images).image
with ke.load(bundle) as net:
    image = np.abs(net.reconstruct(ke.read(scan)))
print("largest difference:", np.abs(streamed - image).max() / image.max())

combined = np.sqrt((np.abs(ke.physics.kspace_to_image(kspace)) ** 2).sum(axis=1))
print(f"zero-filled    {ke.metrics.psnr(head, combined):5.2f} dB")
print(f"reconstructed  {ke.metrics.psnr(head, image):5.2f} dB")

# %% [markdown]
# ## When something is wrong
#
# There is always an image: with another matrix, NaN, a failing network or a missed `--deadline`
# the zero-filled one goes back, flagged in its meta attributes, and the reason is sent as text
# ([Serve a scanner's stream](../docs/how-to/serve.md)).
