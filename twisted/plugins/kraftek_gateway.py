"""Makes ``twistd kraftek-gateway`` known to Twisted, which imports this file to list its commands."""

from twisted.application.service import ServiceMaker

kraftek_gateway = ServiceMaker(
    "Kraftek Socket Gateway",
    "kraftek.daemon.tap",
    "Route events between WebSocket clients and services on Redis",
    "kraftek-gateway",
)
