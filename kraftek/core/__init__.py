"""Who is here, what they may do, where their events go. No socket, no Redis client. Of ours it knows ``contract``."""
