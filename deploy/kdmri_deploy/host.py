"""A server outside of OpenRecon: a unit of systemd, and a compose file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kdmri_edge import __version__

__all__ = ["Sizes", "compose_file", "systemd_unit"]

PLACE: Final = "/opt/kdmri-edge"
"""Where the page on installation puts the virtual environment, and the bundles beside it."""

_WAIT_S: Final = 120  # SIGTERM lets running scans end


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the server is bounded by, and what it needs with these bounds.

    Attributes:
        memory_mib: That it needs.
        threads: Of the CPU.
        sessions: Scans at once.
        slice_mib: K-space of the largest slice that is let in.
        scan_mib: Lines of one scan that may wait.
    """

    memory_mib: int
    threads: int
    sessions: int
    slice_mib: int
    scan_mib: int

    @property
    def environment(self) -> dict[str, str]:
        """The bounds, as `kdmri-edge serve` reads them."""
        return {
            "KDMRI_SESSIONS": str(self.sessions),
            "KDMRI_THREADS": str(self.threads),
            "KDMRI_SLICE_MEMORY": str(self.slice_mib),
            "KDMRI_SCAN_MEMORY": str(self.scan_mib),
        }


def systemd_unit(sizes: Sizes, bundles: str = f"{PLACE}/bundles") -> str:
    """Return a unit that runs the server as nobody in particular, and lets it write nearly nothing.

    MemoryDenyWriteExecute is not among its limits, since runtimes compile kernels in memory, nor is
    ProcSubset, since they count the cores in /proc/cpuinfo.

    Args:
        sizes: Bounds of the server, and of its memory.
        bundles: The folder that it serves.
    """
    bounds = "\n".join(f"Environment={name}={value}" for name, value in sizes.environment.items())
    return f"""\
# kdmri-edge {__version__}, written by deploy/build.py. The memory is the label's: for the largest
# scans that the bounds let in. What a site sets otherwise belongs into a drop-in
# (systemctl edit kdmri-edge) or into /etc/kdmri-edge.env, which may hold KDMRI_OPTIONS.
[Unit]
Description=kdmri-edge, reconstructs a scanner's MRD stream
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
Environment=KDMRI_OPTIONS=
{bounds}
Environment=KDMRI_QUEUE=%S/kdmri-edge/archive
Environment=XDG_CACHE_HOME=%C
Environment=MALLOC_ARENA_MAX=4
Environment=ORT_DISABLE_TELEMETRY=1
Environment=PYTHONUNBUFFERED=1
EnvironmentFile=-/etc/kdmri-edge.env
ExecStart={PLACE}/bin/kdmri-edge serve {bundles} --host 0.0.0.0 --port 9002 $KDMRI_OPTIONS
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
TimeoutStopSec={_WAIT_S}

MemoryMax={sizes.memory_mib}M
MemorySwapMax=0
TasksMax=512

DynamicUser=yes
StateDirectory=kdmri-edge
StateDirectoryMode=0700
CacheDirectory=kdmri-edge
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy=multi-user.target
"""


def compose_file(sizes: Sizes, tag: str) -> str:
    """Return a compose file for the container.

    Args:
        sizes: Bounds of the container; those of the server are in its image.
        tag: Of the image.
    """
    return f"""\
# kdmri-edge {__version__}, written by deploy/build.py: docker compose up -d
services:
  kdmri-edge:
    image: "{tag}"
    restart: unless-stopped
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: {sizes.memory_mib}m
    memswap_limit: {sizes.memory_mib}m
    cpus: {sizes.threads}
    pids_limit: 512
    stop_grace_period: {_WAIT_S}s
    ports: ["9002:9002"] # name the address of the scanner's network before it: "10.0.0.1:9002:9002"
    volumes: ["queue:/var/lib/kdmri-edge"] # what waits for the archive, see serve --send
volumes:
  queue: {{}}
"""
