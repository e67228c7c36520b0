-- KEYS: the leases, what the gateway has written. ARGV: its id.
-- What could not be removed from the room cache is left to the others.
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('ZADD', KEYS[1], 0, ARGV[1])
else
    redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
