-- KEYS: the leases of gateways; the hash of who is in a room, if it is about one. ARGV: the most users.
-- Returns the gateways, and the users in the room, each with a socket; without those if they are more.
local gateways = redis.call('ZRANGE', KEYS[1], 0, -1)
if not KEYS[2] then return {gateways, {}} end
if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[1]) then return {gateways} end
return {gateways, redis.call('HGETALL', KEYS[2])}
