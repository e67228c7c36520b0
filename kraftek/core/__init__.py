"""Who is here, what they may do, where their events go. No socket, no Redis client. Knows ``contract`` alone of ours."""
