"""Golden bytes of WireGuard, from two genuine devices with fixed keys, randomness and clock."""

import json
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
HANDSHAKES: tuple[dict[str, Any], ...] = (VECTORS["handshake"], VECTORS["handshake_psk"])
