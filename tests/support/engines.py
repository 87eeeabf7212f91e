"""A container as engines tell of it, and an engine that is a script."""

import json
from pathlib import Path
from typing import Any

INSPECTED: dict[str, Any] = {
    "Created": "2026-01-02T03:04:05.6Z",
    "Id": "abc",
    "Name": "/web",
    "State": {"Status": "running", "Running": True},
    "Config": {"Image": "nginx:1", "Labels": {"devcontainer.local_folder": "/src"}},
    "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": None}},
    "Mounts": [{"Source": "/data", "Destination": "/var/data"}],
}


def make_engine(folder: Path) -> None:
    """A `docker` in a folder, which answers with files beside it: `ps` and `inspect`."""
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\ncat {folder}/"$1"\n')
    program.chmod(0o755)
    (folder / "ps").write_text("abc\n")
    (folder / "inspect").write_text(json.dumps([INSPECTED]))
