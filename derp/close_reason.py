"""Why a connection ended, on any server here.  Layer L0: cores, transports and sessions name one, the server counts."""

import enum


class CloseReason(enum.Enum):
    """Why a connection ended.  A closed list: it is the label set of the metrics."""

    CLOSED_BY_PEER = "closed_by_peer"
    SOCKET_FAILED = "socket_failed"
    TLS_FAILED = "tls_failed"
    TLS_NO_NAME = "tls_no_name"  # a hello without SNI, where only one name is served
    TLS_OTHER_NAME = "tls_other_name"
    TLS_TOO_OLD = "tls_too_old"  # no version or cipher in common
    TLS_NOT_SPOKEN = "tls_not_spoken"  # plain HTTP, for example
    TLS_DISTRUSTED = "tls_distrusted"  # the client refused our certificate
    PROTOCOL_ERROR = "protocol_error"
    FLOOD = "flood"  # more control frames at once than any honest client sends
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    WRITE_TIMEOUT = "write_timeout"
    SILENT = "silent"  # another relay of the region, from which not even a keep-alive came
    TOO_SLOW = "too_slow"  # notices it must not miss did not fit its queue
    NOT_ADMITTED = "not_admitted"
    TOO_MANY = "too_many"  # connections in all, or of one key
    HTTP_DONE = "http_done"
    CLOSED_BY_MESH = "closed_by_mesh"
    DRAINED = "drained"
    STOPPED = "stopped"
    INTERNAL_ERROR = "internal_error"  # a defect of ours; the log has it

    @property
    def is_of_tls(self) -> bool:
        """Whether the connection never got through TLS, if it ended at the door."""
        return self.value.startswith("tls_")

    def told(self, text: str) -> str:
        """For people: the reason, and in parentheses what `text` adds to it."""
        return f"{self.value} ({text})" if text and text != self.value else self.value
