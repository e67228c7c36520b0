-- show(shown, socket, what, changed): what the user shows of itself with this socket, '-' for nothing; shown is the hash of
-- that in the room, by socket. Clients that watch the room are told by their gateways, which listen to the channel of the
-- same name: a word on it says that something may have changed.
local function show(shown, socket, what, changed)
    if what == '-' then
        changed = redis.call('HDEL', shown, socket) == 1 or changed
    elseif redis.call('HGET', shown, socket) ~= what then
        redis.call('HSET', shown, socket, what)
        changed = true
    end
    if changed then redis.call('PUBLISH', shown, '') end
end
