"""Who is in which room, as services read it in Redis, and what is kept of gateways so that the dead leave nothing."""
