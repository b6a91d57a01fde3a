"""Run the TensorRT engine of the bundle that this file lies in, check it and time it.

Stand-alone: Python 3.10 or newer with numpy, `tensorrt` (or `tensorrt_rtx`) and `cuda-python`.
Build the engine first, with build_engine.py beside this file:

    python3 run_engine.py
    python3 run_engine.py --engine model.sm86.engine --builder rtx --samples 1024
    python3 run_engine.py --lean    # of a version-compatible engine, with tensorrt-lean alone

It runs the golden input, refuses an engine that does not reproduce the golden output, and prints
one row of `kdmri-edge bench` as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
LEAN = "tensorrt_lean"
"""The runtime alone, for version-compatible engines of TensorRT."""

DRIVER = Path("/proc/driver/nvidia/version")
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


class Refused(Exception):  # noqa: N818 - not an error of the program
    """Something that the user can mend; the text says how."""


def _shown(error: Exception) -> str:
    """Return what an error says, with the control characters that a path may hold spelt out.

    A terminal obeys them; the project's commands print likewise, which this file cannot import.
    """
    return "".join(
        c if c in "\t\n" or unicodedata.category(c) != "Cc" else f"\\u{ord(c):04x}"
        for c in str(error)
    )


def load_runtime(name: str, lean: bool = False) -> tuple[Any, Any]:
    """Import the modules of TensorRT and of CUDA's runtime."""
    wanted = LEAN if lean else MODULES[name]
    try:
        trt = importlib.import_module(wanted)
    except ImportError as error:
        raise Refused(f"{wanted} cannot be imported ({error}).") from error
    for module in ("cuda.bindings.runtime", "cuda.cudart"):  # before cuda-python 12.6: the second
        try:
            return trt, importlib.import_module(module)
        except ImportError:
            continue
    raise Refused("cuda-python cannot be imported. pip install cuda-python")


class Engine:
    """A loaded engine: float32 images, perhaps the operator of a mask, float32 images.

    Args:
        path: The engine.
        builder: "tensorrt" or "rtx": what it was built with.
        lean: Load it with tensorrt-lean.
    """

    def __init__(self, path: Path, builder: str = "tensorrt", lean: bool = False) -> None:
        if lean and builder != "tensorrt":
            raise Refused("tensorrt-lean runs engines of TensorRT alone. Leave --lean out.")
        self.trt, self.cuda = load_runtime(builder, lean)
        if not path.is_file():
            raise Refused(f"{path} does not exist. Build it with build_engine.py.")
        record = read_record(path)
        compatible = bool(record.get("version_compatible"))
        if lean and not compatible:
            raise Refused(
                f"{path.name} is not version-compatible, and tensorrt-lean runs no other. Build it"
                " with build_engine.py --version-compatible."
            )
        self._check_device(record, builder)
        self.logger = self.trt.Logger(self.trt.Logger.ERROR)
        self.runtime = self.trt.Runtime(self.logger)
        content = path.read_bytes()
        if compatible:  # the engine brings a runtime along, which is code
            if hashlib.sha256(content).hexdigest() != record.get("sha256"):
                raise Refused(f"{path.name} is not what its record describes. Build it again.")
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise Refused(self._why_not_loaded(path, record, builder))
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(n) for n in range(self.engine.num_io_tensors)]
        given = self.trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == given]
        (self.output,) = (name for name in names if name not in self.inputs)
        self.stream = self._call(self.cuda.cudaStreamCreate)
        self.buffers: dict[str, tuple[Any, int]] = {}

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call the CUDA runtime, whose functions return (error, result...)."""
        error, *results = function(*arguments)
        if int(error) != 0:
            raise Refused(f"CUDA: {function.__name__} failed with {error}.")
        return results[0] if results else None

    def _check_device(self, record: dict[str, Any], builder: str) -> None:
        """Refuse a GPU that TensorRT-RTX does not know, or that an engine is not built for."""
        if builder != "rtx":
            return
        name, here = self.device()
        known = getattr(getattr(self.trt, "ComputeCapability", None), "__members__", {})
        listed = [one.lower() for one in known if one.startswith("SM")]
        if listed and here not in listed:
            raise Refused(
                f"This GPU ({name}, {here}) is none that {TITLES[builder]} {self.trt.__version__}"
                f" runs on: {', '.join(listed)}. Use TensorRT here: python3 build_engine.py"
                " --builder tensorrt"
            )
        built = record.get("compute_capability")
        if built is not None and built != here:
            raise Refused(
                f"The engine is built for {built}, and this GPU ({name}) is {here}. Build one for"
                f" it: python3 build_engine.py --builder rtx --compute-capability {here}"
            )

    def _why_not_loaded(self, path: Path, record: dict[str, Any], builder: str) -> str:
        """Say why an engine is not taken, as far as that can be known."""
        built, here = record.get("version"), self.trt.__version__
        if built is not None and built != here:
            later = " or with --version-compatible" if builder == "tensorrt" else ""
            return (
                f"{path} does not load here: {TITLES[builder]} {built} built it, and this is"
                f" {here}. Build it again, with this version{later}."
            )
        return (
            f"{path} does not load here. Engines run on the kind of GPU that built them: build it"
            " again, on this device. The lines above are the runtime's own."
        )

    def device(self) -> tuple[str, str]:
        """Return the name of the GPU and its compute capability."""
        properties = self._call(self.cuda.cudaGetDeviceProperties, 0)
        name = properties.name
        name = name.decode() if isinstance(name, bytes) else str(name)
        return name.rstrip("\0"), f"sm{properties.major}{properties.minor}"

    def driver(self) -> dict[str, str | None]:
        """Return versions: the driver's own where it says so, its CUDA's and the runtime's."""
        try:  # Jetson's driver has it too, but no nvidia-smi that tells
            own: str | None = DRIVER.read_text(encoding="utf-8").splitlines()[0].strip()
        except (OSError, IndexError):
            own = None
        found = {}
        for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
            number = int(self._call(getattr(self.cuda, name)))
            found[name] = f"{number // 1000}.{number % 1000 // 10}"
        return {
            "driver": own,
            "cuda_driver": found["cudaDriverGetVersion"],
            "cuda_runtime": found["cudaRuntimeGetVersion"],
        }

    def _buffer(self, name: str, size: int) -> Any:
        """Return a tensor's memory on the device, at least `size` bytes."""
        buffer, held = self.buffers.get(name, (None, 0))
        if size > held:
            if buffer is not None:
                self._call(self.cuda.cudaFree, buffer)
            buffer = self._call(self.cuda.cudaMalloc, size)
            self.buffers[name] = buffer, size
            self.context.set_tensor_address(name, int(buffer))
        return buffer

    def resident(self, x: Any, *more: Any) -> Any:
        """Return a function that runs the network on what lies on the device already."""
        self.run(x, *more)  # copies it there

        def query() -> None:
            if not self.context.execute_async_v3(int(self.stream)):
                raise Refused("The engine failed while it ran.")
            self._call(self.cuda.cudaStreamSynchronize, self.stream)

        return query

    def run(self, x: Any, *more: Any) -> Any:
        """Run the network once.

        Args:
            x: float32 [B, C, H, W], or k-space of coils [B, coils, 2, H, W].
            more: The operator of the mask, then the coils' maps, for a graph that takes them.

        Returns:
            float32 of the same shape; of k-space the magnitude, [B, 1, H, W].
        """
        given = [np.ascontiguousarray(array, dtype=np.float32) for array in (x, *more)]
        if len(given) != len(self.inputs):
            raise Refused(f"The engine takes {len(self.inputs)} inputs, not {len(given)}.")
        kinds = self.cuda.cudaMemcpyKind
        copy, stream = self.cuda.cudaMemcpyAsync, self.stream
        there, back = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        for name, array in zip(self.inputs, given):  # noqa: B905 - equal, see above; 3.10
            if not self.context.set_input_shape(name, array.shape):
                raise Refused(f"The engine does not take an input of shape {list(array.shape)}.")
            buffer = self._buffer(name, array.nbytes)
            self._call(copy, buffer, array.ctypes.data, array.nbytes, there, stream)
        shape = given[0].shape
        image = (shape[0], 1, *shape[3:]) if len(shape) == 5 else shape
        result = np.empty(image, np.float32)
        buffer = self._buffer(self.output, result.nbytes)
        if not self.context.execute_async_v3(int(stream)):
            raise Refused("The engine failed while it ran.")
        self._call(copy, result.ctypes.data, buffer, result.nbytes, back, stream)
        self._call(self.cuda.cudaStreamSynchronize, stream)
        return result


def read_record(path: Path) -> dict[str, Any]:
    """Return what an engine was built with; empty where that is not beside it."""
    place = path.with_suffix(".json")
    found = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return found if isinstance(found, dict) else {}


def find_engine(folder: Path, builder: str) -> Path:
    """Return the bundle's newest engine of a builder, by the records beside the engines."""
    found = []
    for file in folder.glob("*.engine"):
        record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if record["builder"] == MODULES[builder]:
            found.append((file.stat().st_mtime, file))
    if not found:
        raise Refused(
            f"{folder} holds no engine of {TITLES[builder]}."
            f" Build one: python3 build_engine.py --builder {builder}"
        )
    return max(found)[1]


def dft_pair(size: int) -> Any:
    """Return cosine and sine of the orthonormal DFT matrix, float32 [2, size, size]."""
    index = np.arange(size)
    angle = 2 * np.pi * (np.outer(index, index) % size) / size
    return (np.stack((np.cos(angle), np.sin(angle))) / np.sqrt(size)).astype(np.float32)


def times(engine: Engine, given: list[Any], warmup: int, samples: int) -> list[float]:
    """Time single queries, copies to the device and back included; milliseconds."""
    for _ in range(warmup):
        engine.run(*given)
    found = []
    for _ in range(samples):
        began = time.perf_counter_ns()
        engine.run(*given)
        found.append((time.perf_counter_ns() - began) * 1e-6)
    return found


def measure(
    folder: Path,
    path: Path,
    builder: str,
    warmup: int,
    samples: int,
    image: Path | None = None,
    lean: bool = False,
) -> dict[str, Any]:
    """Check an engine against the bundle's golden output and time it.

    Args:
        folder: The bundle.
        path: The engine.
        builder: What it was built with.
        warmup: Queries that are not timed.
        samples: Queries that are.
        image: Where to write the engine's golden image, .npy.
        lean: Run it with tensorrt-lean.

    Returns:
        A row of `kdmri-edge bench`.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    given = [np.load(folder / "golden_input.npy")]
    if manifest.get("mask_input"):
        given.append(np.load(folder / "golden_operator.npy"))
    for axis, name in ((2, "dft_height"), (3, "dft_width")):
        if name in manifest["io"]:
            given.append(dft_pair(given[0].shape[axis]))
    if "maps" in manifest["io"]:
        given.append(np.load(folder / "golden_maps.npy"))
    wanted = np.load(folder / "golden_output.npy")
    began = time.perf_counter()
    engine = Engine(path, builder, lean)
    load_s = time.perf_counter() - began
    output = engine.run(*given)
    span = float(wanted.max() - wanted.min()) or 1.0
    error = float(np.abs(output - wanted).max()) / span
    limit = float(manifest["parity"]["tolerance"]["max_error"])
    if not error <= limit:
        raise Refused(
            f"{path} gives another image than PyTorch: largest difference {error:.2g} of its"
            f" range, limit {limit:.2g}. Build it again with TF32 off, or report the versions."
        )
    if image is not None:
        np.save(image, output)
    name, capability = engine.device()
    drawn = times(engine, given, warmup, samples)
    precision = str(manifest["precision"])
    return {
        "key": f"{manifest['role']}/{builder}-{precision}",
        "network": manifest["role"],
        "role": manifest["role"],
        "runtime": TITLES[builder],
        "device": "cuda",
        "precision": precision,
        "variant": "default",
        "status": "measured",
        "reason": None,
        "difference": {"max_range_normalised": error, "psnr_db": None, "ssim": None},
        "latency": {
            "samples": samples,
            "p50_ms": float(np.percentile(drawn, 50)),
            "p90_ms": float(np.percentile(drawn, 90)),
            "p99_ms": float(np.percentile(drawn, 99)) if samples >= 1000 else None,
            "min_ms": min(drawn),
            "mean_ms": float(np.mean(drawn)),
            "round_p50_ms": [float(np.percentile(drawn, 50))],
        },
        "load_s": [load_s],
        "size_bytes": path.stat().st_size,
        "session": {
            "backend": TITLES[builder] + (" lean" if lean else ""),
            "version": engine.trt.__version__,
            "device": name,
            "provider": capability,
            "threads": 1,
            "precision_requested": precision,
            "precision_executed": f"{precision}, strongly typed",
        },
        "volumes": [],
        "about": {
            key: manifest.get(key)
            for key in ("role", "parameters", "matrix", "mask", "checkpoint_sha256")
        },
        "engine_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "machine": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            **engine.driver(),
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the row as JSON; exit with 1 and one sentence if that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--engine", type=Path, help="default: the newest of the bundle")
    parser.add_argument("--builder", choices=list(MODULES), default="tensorrt")
    parser.add_argument("--lean", action="store_true", help="run it with tensorrt-lean alone")
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--image", type=Path, help="write the engine's image there, .npy")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.warmup < 0 or chosen.samples < 1:
            raise Refused("Give --samples 1 or more and --warmup 0 or more.")
        if not (chosen.bundle / "manifest.json").is_file():
            raise Refused(f"{chosen.bundle} is no bundle. Give it with --bundle.")
        path = chosen.engine or find_engine(chosen.bundle, chosen.builder)
        row = measure(
            chosen.bundle,
            path,
            chosen.builder,
            chosen.warmup,
            chosen.samples,
            chosen.image,
            chosen.lean,
        )
    except (Refused, ValueError, OSError, KeyError) as error:
        print(f"Error: {_shown(error)}", file=sys.stderr)
        return 1
    print(json.dumps(row, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
