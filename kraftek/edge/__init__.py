"""HTTP and WebSocket, in and out: bytes outside, values inside. Knows ``contract`` alone of ours."""
