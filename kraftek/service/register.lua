-- KEYS: the services that have registered themselves, until when each stands. ARGV: a service, its registration, milliseconds
-- that it stands, how many services there may be.
-- Returns the registration that stands: this one, unless instances with another one live; '' if there are too many services.
-- Gateways are told of a new one. What has ended is removed, and everything when nobody registers any more.
local name, registration, lifetime = ARGV[1], ARGV[2], tonumber(ARGV[3])
local milliseconds = math.floor(now / 1000)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', milliseconds, 'LIMIT', 0, 100)) do
    redis.call('HDEL', KEYS[1], ended)
    redis.call('ZREM', KEYS[2], ended)
end
local there = redis.call('ZSCORE', KEYS[2], name) and redis.call('HGET', KEYS[1], name)
if there and there ~= registration then return there end
if not there then
    if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return '' end
    redis.call('HSET', KEYS[1], name, registration)
    redis.call('PUBLISH', KEYS[1], '')
end
redis.call('ZADD', KEYS[2], milliseconds + lifetime, name)
for i = 1, 2 do
    if redis.call('PTTL', KEYS[i]) < lifetime then redis.call('PEXPIRE', KEYS[i], lifetime) end
end
return registration
