-- Makes right what there is of entries that should stand. One that has left and entered again meanwhile is newer than it
-- was. The result has those that are not their user's only one in the
-- room: the position, from 0, 1 if it is the newest or else 0, and the older sockets.
local position = -1
result = {}
each(function(room, string, sockets, user, socket, entry, shown, what)
    position = position + 1
    if redis.call('SADD', KEYS[1], entry) == 1 then redis.call('SREM', KEYS[2], entry) end
    local newest = redis.call('ZREVRANGE', sockets, 0, 1, 'WITHSCORES')
    local stood, at = newest[1], ARGV[arg + 4]
    local entered = stood == socket and newest[2] or stood and redis.call('ZSCORE', sockets, socket)
    if not entered or tonumber(entered) < tonumber(at) then
        redis.call('ZADD', sockets, at, socket)
        newest = redis.call('ZREVRANGE', sockets, 0, 1, 'WITHSCORES')
    end
    local there, changed = redis.call('HGET', room, user), false
    -- A socket without the id of a gateway was written by another system, and stays.
    if there ~= newest[1] and (not there or there:find('.', 1, true)) then
        redis.call('HSET', room, user, newest[1])
        changed = true
        if not there and not stood then
            told = told or {}
            told[#told + 1] = {ARGV[arg + 3], key + 3, 2, sockets}
        end
    end
    local named = holder(newest)
    if redis.call('GET', string) ~= named then redis.call('SET', string, named) end
    if shown then show(shown, socket, what, changed) end
    if newest[1] ~= socket then
        result[#result + 1] = {position, 0}
    elseif newest[3] then
        result[#result + 1] = {position, 1, unpack(redis.call('ZREVRANGE', sockets, 1, most_older))}
    end
end)
