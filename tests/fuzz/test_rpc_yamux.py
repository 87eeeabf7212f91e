"""Two yamux sessions on a virtual link, driven by random histories and compared with plain byte strings."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tailnet.errors import LocalProtocolError
from tailnet.rpc.yamux import SessionEvent, SessionLimits, YamuxSession

# Sizes around the window and half of it are where the faults would be.
SIZES = st.one_of(
    st.integers(1, 300), st.sampled_from([65536, 131071, 131072, 131073, 262143, 262144, 262145, 400_000])
)


class Direction:
    """What one side wrote to a stream, and what the other side got of it."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.read = bytearray()
        self.closed = False  # the writer closed it
        self.ended = False  # the reader was told so
        self.lost = False  # either side reset the stream: what is missing may stay missing


class TwoSessions(RuleBasedStateMachine):
    """Sides 0 (client) and 1 (server).  Bytes travel in random portions, so frames cross each other."""

    @initialize()
    def connect(self) -> None:
        limits = SessionLimits(ping_seconds=None, max_unsent_bytes=1 << 20)
        self.sides = [YamuxSession(server=bool(side), now=0.0, limits=limits) for side in (0, 1)]
        self.wires = [bytearray(), bytearray()]  # towards side 0, towards side 1
        self.streams: dict[int, list[Direction]] = {}  # direction n: written by side n
        self.withheld: list[dict[int, int]] = [{}, {}]
        self.known: list[set[int]] = [set(), set()]
        self.serial = 0

    def stream(self, data: st.DataObject, side: int) -> int:
        """One of the streams that a side has heard of."""
        return data.draw(st.sampled_from(sorted(self.known[side])))

    def collect(self) -> None:
        for side in (0, 1):
            self.wires[1 - side] += b"".join(self.sides[side].data_to_send())

    @rule(side=st.sampled_from([0, 1]))
    def open_stream(self, side: int) -> None:
        if len(self.streams) < 8:
            stream_id = self.sides[side].open_stream()
            self.streams[stream_id] = [Direction(), Direction()]
            self.known[side].add(stream_id)

    @precondition(lambda self: all(self.known))
    @rule(data=st.data(), side=st.sampled_from([0, 1]), size=SIZES)
    def write(self, data: st.DataObject, side: int, size: int) -> None:
        stream_id = self.stream(data, side)
        direction = self.streams[stream_id][side]
        self.serial += 1
        payload = (self.serial.to_bytes(4, "big") * (size // 4 + 1))[:size]
        if direction.closed:
            try:
                self.sides[side].send_data(stream_id, [payload])
            except LocalProtocolError:
                return
            # Only a stream that is gone swallows bytes: reset, or closed by both.
            assert direction.lost or self.streams[stream_id][1 - side].ended
        elif self.sides[side].send_data(stream_id, [payload[:3], payload[3:]]):
            direction.written += payload

    @precondition(lambda self: all(self.known))
    @rule(data=st.data(), side=st.sampled_from([0, 1]))
    def close(self, data: st.DataObject, side: int) -> None:
        stream_id = self.stream(data, side)
        self.sides[side].close_stream(stream_id)
        self.streams[stream_id][side].closed = True

    @precondition(lambda self: all(self.known))
    @rule(data=st.data(), side=st.sampled_from([0, 1]))
    def reset(self, data: st.DataObject, side: int) -> None:
        stream_id = self.stream(data, side)
        self.sides[side].reset_stream(stream_id)
        for direction in self.streams[stream_id]:
            direction.lost = True

    @precondition(lambda self: all(self.known))
    @rule(data=st.data(), side=st.sampled_from([0, 1]))
    def hold_back(self, data: st.DataObject, side: int) -> None:
        stream_id = self.stream(data, side)
        self.sides[side].withhold(stream_id)
        self.withheld[side].setdefault(stream_id, 0)

    @rule(side=st.sampled_from([0, 1]))
    def release(self, side: int) -> None:
        for stream_id, count in self.withheld[side].items():
            self.sides[side].consume(stream_id, count)
            self.withheld[side][stream_id] = 0

    @rule(side=st.sampled_from([0, 1]), size=st.one_of(st.integers(1, 40), st.integers(1, 1 << 20)))
    def travel(self, side: int, size: int) -> None:
        self.collect()
        portion = bytes(self.wires[side][:size])
        del self.wires[side][:size]
        # RemoteProtocolError here would mean that one of two honest sides broke a rule: a window, for one.
        for event, stream_id, value in self.sides[side].receive_data(portion):
            directions = self.streams.get(stream_id)
            if event is SessionEvent.DATA:
                assert directions is not None
                directions[1 - side].read += value
                if stream_id in self.withheld[side]:
                    self.withheld[side][stream_id] += len(value)
            elif event is SessionEvent.OPENED:
                self.known[side].add(stream_id)
            elif event is SessionEvent.ENDED:
                assert directions is not None
                directions[1 - side].ended = True
            elif event is SessionEvent.RESET:
                assert directions is not None
                assert directions[0].lost

    @invariant()
    def what_is_read_was_written(self) -> None:
        for directions in getattr(self, "streams", {}).values():
            for direction in directions:
                assert direction.written.startswith(direction.read)
                if direction.ended and not direction.lost:
                    assert direction.closed
                    assert direction.read == direction.written

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for _ in range(200):
            self.collect()
            if not any(self.wires):
                break
            for side in (0, 1):
                self.travel(side, 1 << 30)
                self.release(side)
        assert not any(self.wires)
        self.what_is_read_was_written()
        for directions in self.streams.values():
            for direction in directions:
                if not direction.lost:
                    assert direction.read == direction.written
                    assert direction.ended == direction.closed


TwoSessions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwoSessions = TwoSessions.TestCase
