"""A container as engines tell of it."""

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
