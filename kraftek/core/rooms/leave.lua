-- Removes entries, or passes them to the user's newest socket that remains in the room. Of lost entries (the first key
-- is that of their set) those that are no longer lost stay: their process is back, or another one has removed them.
-- The deletion comes first: after one Redis takes all the rest in spite of 'maxmemory'.
local burying = KEYS[1] == KEYS[2]
each(function(room, string, sockets, user, socket, entry, shown)
    if redis.call('SREM', KEYS[1], entry) == 0 then
        if burying then return end
        redis.call('SREM', KEYS[2], entry)
    end
    local stood = redis.call('ZREM', sockets, socket) == 1
    local newest = redis.call('ZCARD', sockets) > 0 and redis.call('ZREVRANGE', sockets, 0, 0, 'WITHSCORES')
    local there = redis.call('HGET', room, user)
    if newest then
        if there == socket then redis.call('HSET', room, user, newest[1]) end
    elseif there == socket or stood and not there then
        redis.call('HDEL', room, user)
        told = told or {}
        told[#told + 1] = {ARGV[arg + 3], key + 3, 2, sockets}
    end
    if redis.call('GET', string) == socket then
        local heir = holder(newest)
        if heir then redis.call('SET', string, heir) else redis.call('DEL', string) end
    end
    if shown then
        redis.call('HDEL', shown, socket)
        if redis.call('EXISTS', room) == 0 then redis.call('DEL', shown) end
        redis.call('PUBLISH', shown, '')
    end
end)
