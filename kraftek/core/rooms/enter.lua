-- KEYS, ARGV: as in entries.lua, of one entry. Writes it as its user's newest in the room. The result is when it entered:
-- at the given time, unless another one is not older; and the older sockets, if there are any.
local done, raised = pcall(function()
    local first = services + 3
    local user, socket, entry, at, what = ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 4], ARGV[first + 6]
    redis.call('SADD', KEYS[1], entry)
    local others = redis.call('ZCARD', KEYS[6]) > 0
    if others then
        local newest = redis.call('ZREVRANGE', KEYS[6], 0, 0, 'WITHSCORES')
        at = string.format('%.0f', math.max(at, newest[2] + 1))
    end
    local appears = redis.call('HSET', KEYS[4], user, socket) == 1
    if redis.call('ZADD', KEYS[6], at, socket) == 0 then redis.call('SREM', KEYS[2], entry) end
    redis.call('SET', KEYS[5], socket)
    result = tonumber(at)
    if what ~= '' then show(KEYS[#KEYS], socket, what, true) end
    if others then
        result = {result, unpack(redis.call('ZREVRANGE', KEYS[6], 1, most_older))}
    elseif appears then
        told = {{ARGV[first + 3], 7, 2, KEYS[6]}}
    end
end)
if not done then
    local reason = type(raised) == 'table' and raised.err or tostring(raised)
    if reason:find('WRONGTYPE', 1, true) then failure = {KEYS[4], reason} else problem = raised end
end
