"""Golden bytes of disco messages, made with the genuine packages."""

import json
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
KEYS = {
    name: bytes.fromhex(text) for name, text in VECTORS["keys"].items() if name.endswith(("_private", "_public"))
} | {"shared": bytes.fromhex(VECTORS["keys"]["shared_key_precomputed"])}
MESSAGES: dict[str, dict[str, Any]] = {message["name"]: message for message in VECTORS["messages_v1_80_3"]}
