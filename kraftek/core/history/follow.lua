-- KEYS: the rules, and the gateways that follow them. ARGV: the rules, a name for them, the gateway's id, for how many
-- seconds it follows them, for how many they stand, and 1 if it starts.
-- Whoever starts writes the rules, and whoever finds none. Returns those that stand: who has others does not follow them.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now / 1000000)
local stand = redis.call('HGET', KEYS[1], 'rules')
if stand ~= ARGV[1] and (not stand or ARGV[6] == '1') then
    stand = ARGV[1]
    redis.call('HSET', KEYS[1], 'rules', stand, 'generation', ARGV[2])
end
if stand == ARGV[1] then
    redis.call('ZADD', KEYS[2], now / 1000000 + ARGV[4], ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[5])
else
    redis.call('ZREM', KEYS[2], ARGV[3])
end
return stand
