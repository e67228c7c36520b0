-- Writes an entry. Returns the socket that it displaced, or false, and what failed.
local displaced
each(function(room, string, sockets, user, socket, entry, publish)
    local before = redis.call('HGET', room, user)
    redis.call('HSET', room, user, socket)
    redis.call('SET', string, socket)
    redis.call('SADD', sockets, socket)
    redis.call('SREM', KEYS[2], entry)
    redis.call('SADD', KEYS[1], entry)
    if not before then publish() end
    displaced = before ~= socket and before
end)
return {displaced or false, unpack(failure)}
