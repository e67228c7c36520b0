"""The history of rooms, as gateways read it in Redis. It knows no session."""
