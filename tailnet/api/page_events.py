"""What pages follow (layer L3): parts of them as events, which live.js puts in their places.

{"replace": {<id of an element>: <HTML>}}        {"append": {...}}
"""

from collections.abc import Mapping

from derp.server.markup import Html
from tailnet.api.sse import Told
from tailnet.go_json import go_json


def replaced(parts: Mapping[str, Html]) -> Told:
    """Parts that are others now.  A page that comes back gets the newest in any case, so they have no id."""
    return None, go_json({"replace": parts})


def appended(name: str, part: Html, event_id: int) -> Told:
    """More at the end of a part."""
    return event_id, go_json({"append": {name: part}})
