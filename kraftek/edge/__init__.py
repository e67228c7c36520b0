"""HTTP and WebSocket, in and out: bytes outside, values inside. Of this package it imports ``contract`` alone."""
