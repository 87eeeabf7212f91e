"""Lists of networks, as settings hold them."""

from ipaddress import ip_network

from derp.config.relay import Network


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)
