"""The command line of a relay on loopback, ours or the genuine derper: the same flags, as the drop-in promises.

No pytest and no trio here: bench/ starts the same relays.
"""

import sys
from pathlib import Path
from typing import Literal

from tests.support.gobuild import DERPER, build

RelayKind = Literal["ours", "genuine"]

HOST = "127.0.0.1"


def command_line(
    kind: RelayKind,
    folder: Path,
    port: int,
    *,
    tls: bool = False,
    hostname: str = HOST,
    mesh_key: str = "",
    stun_port: int = 0,
) -> list[str]:
    """The argument vector for one relay on 127.0.0.1:port that keeps all its files in `folder`.  Raises GoMissing."""
    start = [str(build(DERPER))] if kind == "genuine" else [sys.executable, "-m", "derp", "serve"]
    arguments = [f"--a={HOST}:{port}", f"--c={folder / 'derper.key'}", f"--hostname={hostname}", "--http-port=-1"]
    arguments.append(f"--stun-port={stun_port}" if stun_port else "--stun=false")
    if tls:
        arguments += ["--certmode=manual", f"--certdir={folder / 'certs'}"]
    if mesh_key:
        psk = folder / "mesh.key"
        psk.write_text(mesh_key + "\n")
        psk.chmod(0o600)
        arguments.append(f"--mesh-psk-file={psk}")
    return start + arguments
