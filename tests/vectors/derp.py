"""The golden vectors of DERP, made with the genuine packages: `make derp-vectors`, tests/interop/go/cmd/derpvectors."""

import json
from pathlib import Path
from typing import Any

from derp.keys import MeshKey, NodePrivate

PATH = Path(__file__).with_suffix(".json")
VECTORS: dict[str, Any] = json.loads(PATH.read_text())

PRIVATE = {name: NodePrivate.parse(pair["private"]) for name, pair in VECTORS["keys"].items()}
PUBLIC = {name: bytes.fromhex(pair["public"]) for name, pair in VECTORS["keys"].items()}
MESH_KEY = MeshKey.parse(VECTORS["mesh_key"])


def wire(peer: str, side: str) -> bytes:
    """All that `side` ("client" or "server") wrote on the connection of `peer` in the recorded session."""
    return b"".join(
        bytes.fromhex(frame["hex"]) for frame in VECTORS["session"] if (frame["peer"], frame["from"]) == (peer, side)
    )
