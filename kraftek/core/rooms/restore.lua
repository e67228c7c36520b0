-- Writes entries where they are missing. Returns the sockets that another socket has displaced, and what failed.
local superseded = {}
each(function(room, string, sockets, user, socket, entry, publish)
    redis.call('SREM', KEYS[2], entry)
    redis.call('SADD', KEYS[1], entry)
    redis.call('SADD', sockets, socket)
    if redis.call('HSETNX', room, user, socket) == 1 then publish() end
    if redis.call('HGET', room, user) == socket then
        redis.call('SET', string, socket)
    else
        superseded[#superseded + 1] = socket
    end
end)
return {superseded, unpack(failure)}
