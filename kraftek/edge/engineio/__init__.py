"""Engine.IO 4, the transport below Socket.IO: over WebSocket and long-polling."""
