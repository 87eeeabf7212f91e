"""Parts of pages as events: one line of JSON each, whatever stands in the part."""

import json

from derp.server.markup import Html
from tailnet.api.page_events import appended, replaced


def test_a_part_is_one_line_of_json() -> None:
    for event_id, data in (replaced({"a": Html("<b>\n\u2028</b>")}), appended("a", Html("<b>\n\u2028</b>"), 7)):
        assert data.count(b"\n") == 1
        (change,) = json.loads(data).values()
        assert change == {"a": "<b>\n\u2028</b>"}
        assert event_id in (None, 7)
