-- KEYS: the rules, the gateways that follow them, and the leases. ARGV: the rules, a name for them, the gateway's id, for how
-- many seconds it follows them, for how many they stand, and 1 if it starts.
-- Whoever starts writes the rules, and whoever finds none. Returns those that stand: who has others does not follow them.
-- After a fail-over the order is in another epoch from then on, and so are all topics, whoever is told something.
-- Services compare the number of those that follow with that of the leases. So who follows has a lease, and is removed before
-- that: when it stops, and when it has said nothing for a while, which is shorter than a lease. The gateways remove others, and
-- all of them are removed when none is left.
local seconds, lasts = now / 1000000, tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', seconds)
redis.call('ZREMRANGEBYSCORE', KEYS[2], string.format('(%.6f', seconds + lasts), '+inf') -- before the clock was set back
local stand = redis.call('HGET', KEYS[1], 'rules')
if stand ~= ARGV[1] and (not stand or ARGV[6] == '1') then
    stand = ARGV[1]
    redis.call('HSET', KEYS[1], 'rules', stand, 'generation', ARGV[2])
    redis.call('DEL', KEYS[2])
end
if stand == ARGV[1] then
    redis.call('EXPIRE', KEYS[1], ARGV[5])
    order_of(rules_of(KEYS[1]:sub(1, -1 - #(OWN .. 'rules'))))
    if redis.call('ZSCORE', KEYS[3], ARGV[3]) then redis.call('ZADD', KEYS[2], seconds + lasts, ARGV[3]) end
else
    redis.call('ZREM', KEYS[2], ARGV[3])
end
redis.call('PEXPIRE', KEYS[2], lasts * 1000)
return stand
