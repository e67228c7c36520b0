-- KEYS: the instances, the leases. ARGV: this instance, milliseconds that its leases last.
-- Renews what this instance has.
local me, ttl = ARGV[1], tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], 'XX', math.floor(now / 1000) + ttl, me)
for i = 2, #KEYS do
    local lease = redis.call('GET', KEYS[i])
    if lease and lease:sub(1, #me + 1) == me .. ' ' then redis.call('PEXPIRE', KEYS[i], ttl) end
end
return 1
