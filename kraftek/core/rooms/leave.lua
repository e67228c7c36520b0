-- Removes entries, or passes them to another socket of the user. If several processes remove the same entry, only the
-- first one has an effect. Returns 0, and what failed.
each(function(room, string, sockets, user, socket, entry, publish)
    if redis.call('SREM', KEYS[1], entry) == 0 then return end
    redis.call('SREM', sockets, socket)
    local heir = redis.call('SRANDMEMBER', sockets)
    if redis.call('HGET', room, user) == socket then
        if heir then
            redis.call('HSET', room, user, heir)
        else
            redis.call('HDEL', room, user)
            publish()
        end
    end
    if redis.call('GET', string) == socket then
        if heir then redis.call('SET', string, heir) else redis.call('DEL', string) end
    end
end)
return {0, unpack(failure)}
