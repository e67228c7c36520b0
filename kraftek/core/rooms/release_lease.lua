-- KEYS: the leases, the gateway's entries, what gateways publish about services. ARGV: its id.
-- Entries that could not be removed from the room cache are left to the other gateways: an expired lease says so.
keep_type('hash', KEYS[3])
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('ZADD', KEYS[1], 0, ARGV[1])
else
    redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
