"""Build a TensorRT engine from the bundle that this file lies in.

Stand-alone: Python 3.10 or newer with `tensorrt` (JetPack brings it), or with `tensorrt_rtx` for
engines that are made ahead of time for another GPU. Engines of TensorRT run only on the kind of GPU
and the version that built them, so run this on the device:

    python3 build_engine.py
    python3 build_engine.py --version-compatible
    python3 build_engine.py --builder rtx --compute-capability sm86

A version-compatible engine also runs in later versions of TensorRT, and with
`run_engine.py --lean` in the small package tensorrt-lean; it may be slower. What timing kernels has
taught is kept in model.tensorrt.timing, so that the next build there takes less long.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
OLDEST = (10, 3)  # of TensorRT; JetPack 6.1 and 6.2 have 10.3
BF16_FROM = 80
"""The oldest compute capability whose GPUs compute in bf16: 8.0."""

WRITTEN_IN_BF16 = b"\x0a\x14kdmri_edge.precision\x12\x04bf16"
"""What a graph of bf16 says of itself: key and value of its metadata, as ONNX's files hold them."""

TIMING = "model.tensorrt.timing"
"""Beside the engine: the times of kernels on the device that built it."""

PROFILE = "profile.json"
"""Of a graph of any matrix: smallest, usual and largest shape of each input. It may be edited."""


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


def load_builder(name: str) -> Any:
    """Import a builder's module."""
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        hint = "JetPack has it; elsewhere: pip install tensorrt"
        if name == "rtx":
            hint = "pip install tensorrt-rtx"
        raise Refused(f"{MODULES[name]} cannot be imported ({error}). {hint}") from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if name == "tensorrt" and version < OLDEST:
        raise Refused(f"TensorRT {module.__version__} is older than 10.3. Update it.")
    return module


def capabilities(trt: Any) -> list[str]:
    """Return the GPUs that an installed TensorRT-RTX builds for: "sm75", ..."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return [name.lower() for name in known if name.startswith("SM")]


def gpu_here() -> tuple[str, str] | None:
    """Return name and compute capability of the first GPU; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, number = done.stdout.partition("\n")[0].rpartition(",")
    number = number.strip().replace(".", "")
    return (name.strip(), f"sm{number}") if done.returncode == 0 and number.isdigit() else None


def check_gpu(trt: Any, compute_capability: str | None) -> None:
    """Refuse, before anything is built, a GPU that TensorRT-RTX has no kernels for."""
    known = capabilities(trt)
    title = f"tensorrt_rtx {trt.__version__}"
    listed = ", ".join(known)
    if compute_capability is not None:
        if compute_capability not in known:
            raise Refused(f"{title} knows no {compute_capability}: it builds for {listed}.")
        return
    here = gpu_here()
    if here is not None and known and here[1] not in known:
        raise Refused(
            f"This GPU ({here[0]}, {here[1]}) is none that {title} builds for: {listed}. Use"
            " TensorRT here (--builder tensorrt), or name another GPU with --compute-capability."
        )


def check_bf16(compute_capability: str | None) -> None:
    """Refuse, before anything is built, a GPU that has no bf16, for a graph that is written in it.

    Args:
        compute_capability: That is asked for; None for the GPU that is there.
    """
    name, own = compute_capability, compute_capability
    if own is None:
        here = gpu_here()
        if here is None:  # Jetsons of JetPack 6 and 7 have it; others the builder decides
            return
        name, own = f"this GPU ({here[0]}, {here[1]})", here[1]
    number = own[2:]
    if number.isdigit() and int(number) < BF16_FROM:
        raise Refused(
            f"The graph is written in bf16, which {name} does not have: it takes sm{BF16_FROM} or"
            " newer. Export the network in fp16 for it."
        )


def build(
    graph: bytes,
    builder: str,
    compute_capability: str | None = None,
    batches: tuple[int, ...] = (1, 1, 1),
    workspace_mib: int = 1024,
    shapes: dict[str, list[list[int]]] | None = None,
    version_compatible: bool = False,
    timing: Path | None = None,
) -> bytes:
    """Build an engine.

    Args:
        graph: Contents of the .onnx file.
        builder: "tensorrt" or "rtx".
        compute_capability: For rtx: "sm86", ...; None builds for the GPU that is there.
        batches: Smallest, usual and largest batch, for a graph with a dynamic one.
        workspace_mib: Scratch memory that kernels may take.
        shapes: Smallest, usual and largest shape of each input, for a graph of any matrix.
        version_compatible: For tensorrt: later versions run it, too, and so does tensorrt-lean.
        timing: For tensorrt: where what was learnt of kernels' times is read and written.

    Returns:
        The engine's bytes.
    """
    trt = load_builder(builder)
    if builder == "rtx":
        check_gpu(trt, compute_capability)
    elif compute_capability is not None:
        raise Refused("Only --builder rtx builds for another GPU than the one that is here.")
    if WRITTEN_IN_BF16 in graph:
        check_bf16(compute_capability)
    if version_compatible and builder != "tensorrt":
        raise Refused("Only engines of --builder tensorrt can be version-compatible.")
    logger = trt.Logger(trt.Logger.ERROR)
    maker = trt.Builder(logger)
    if maker is None:
        raise Refused("The builder does not start: is there a GPU with its driver?")
    # From TensorRT 11 on every network is strongly typed and the flag may be gone.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = maker.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise Refused("The graph is not taken: " + "; ".join(reasons))
    config = maker.create_builder_config()
    # Data consistency is float32 on purpose: TF32 would round it to ten bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if compute_capability is not None:
        known = getattr(trt.ComputeCapability, compute_capability.upper())
        config.num_compute_capabilities = 1
        config.set_compute_capability(known, 0)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    times = timing if builder == "tensorrt" else None  # TensorRT-RTX has none
    if times is not None:
        known_times = times.read_bytes() if times.is_file() else b""
        # One of another version or GPU is not taken; an empty one begins anew.
        if not config.set_timing_cache(config.create_timing_cache(known_times), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    free = [given for given in inputs if -1 in tuple(given.shape)]
    if free:
        profile = maker.create_optimization_profile()
        for given in free:  # images, and the coils' maps that belong to them
            own = (shapes or {}).get(given.name)
            if own is not None and len(own) != 3:
                raise Refused(f"{PROFILE} needs three shapes of {given.name!r}.")
            rest = tuple(given.shape)[1:]
            if own is None and -1 in rest:
                raise Refused(f"The graph takes any matrix, and {PROFILE} lacks {given.name!r}.")
            profile.set_shape(given.name, *(own or [[batch, *rest] for batch in batches]))
        config.add_optimization_profile(profile)
    engine = maker.build_serialized_network(network, config)
    # The parser owns the weights that the network points to: it must outlive the build.
    del parser
    if engine is None:
        raise Refused("The build failed; the messages above say why.")
    if times is not None:
        _replace(times, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def engine_name(builder: str, compute_capability: str | None) -> str:
    """Return the file name of an engine."""
    return f"model.{compute_capability or builder}.engine"


def write_engine(
    folder: Path,
    builder: str,
    compute_capability: str | None,
    batches: tuple[int, ...],
    workspace_mib: int,
    version_compatible: bool = False,
) -> dict[str, Any]:
    """Build the bundle's engine; write it and what it was built with, and return the latter."""
    graph = (folder / "model.onnx").read_bytes()
    place = folder / PROFILE
    shapes = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    began = time.perf_counter()
    timing = folder / TIMING
    engine = build(
        graph,
        builder,
        compute_capability,
        batches,
        workspace_mib,
        shapes,
        version_compatible,
        timing,
    )
    seconds = time.perf_counter() - began
    place = folder / engine_name(builder, compute_capability)
    record = {
        "engine": place.name,
        "bytes": len(engine),
        "sha256": hashlib.sha256(engine).hexdigest(),
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "builder": MODULES[builder],
        "version": load_builder(builder).__version__,
        "compute_capability": compute_capability,
        "version_compatible": version_compatible,
        "batches": list(batches),
        **({} if shapes is None else {"shapes": shapes}),
        "machine": platform.machine(),
        "seconds": round(seconds, 1),
        "tf32": False,
        "engine_built": True,
        "engine_executed": False,
    }
    written = {
        place: engine,
        place.with_suffix(".json"): (json.dumps(record, indent=2) + "\n").encode(),
    }
    for file, content in written.items():
        _replace(file, content)
    _account(folder, written)
    return record


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _account(folder: Path, written: dict[Path, bytes]) -> None:
    """Tell the manifest of an engine that replaced one of the export: it has that one's hash."""
    place = folder / "manifest.json"
    manifest = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    files = manifest.get("files", {})
    known = {file.name: content for file, content in written.items() if file.name in files}
    if known:
        files.update({name: hashlib.sha256(content).hexdigest() for name, content in known.items()})
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        _replace(place, text.encode())


def main(arguments: list[str] | None = None) -> int:
    """Build, and print the record as JSON; exit with 1 and one sentence if that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--builder", choices=list(MODULES), default="tensorrt")
    parser.add_argument(
        "--compute-capability", help="for rtx: sm86, ...; list prints those that it knows"
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="for tensorrt: an engine that later versions run, too, and tensorrt-lean",
    )
    parser.add_argument("--batches", default="1,1,1", help="smallest,usual,largest")
    parser.add_argument("--workspace", type=int, default=1024, help="MiB")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.compute_capability == "list":
            print("\n".join(capabilities(load_builder("rtx"))))
            return 0
        batches = tuple(int(part) for part in chosen.batches.split(","))
        if len(batches) != 3 or list(batches) != sorted(batches) or batches[0] < 1:
            raise Refused("--batches takes three rising numbers, e.g. 1,4,16.")
        if not (chosen.bundle / "model.onnx").is_file():
            raise Refused(f"{chosen.bundle} holds no model.onnx. Give the bundle with --bundle.")
        record = write_engine(
            chosen.bundle,
            chosen.builder,
            chosen.compute_capability,
            batches,
            chosen.workspace,
            chosen.version_compatible,
        )
    except (Refused, ValueError, OSError) as error:
        print(f"Error: {_shown(error)}", file=sys.stderr)
        return 1
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
