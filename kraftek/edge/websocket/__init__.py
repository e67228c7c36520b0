"""WebSocket clients, over Autobahn. The only place that imports it."""
