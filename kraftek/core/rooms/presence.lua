-- Announces what was told: {event, the key of its first place, the argument with the first bounds, the key of its user's
-- sockets in the room} for each event. The event is JSON, with a line break where the epoch and the number belong. Then
-- returns the result, and what failed. What a service cannot be told (its key is no stream) does not affect the others.
-- A full stream takes no presence events either. They wait beside it, for core/trim_streams.lua, in a hash by user and room:
-- joined and left, one after the other, are nothing to tell. So what waits is by how much the service's view differs from
-- the room cache. Meanwhile the stream takes no event, which could come before the `joined` of its user. If too much waits,
-- or a new epoch began meanwhile, one event waits in place of all others: that all rooms have to be read again.
-- Of what is here no function is made where nothing is told, as for most entries and departures.
local begun = told and services > 0 and begun_epoch(KEYS[3], ARGV[services + 2])
if begun then
    local send, level, keep = streams()

    local function owe(place, user_and_room, event)
        local known, owed = level(place), place .. ':presence'
        if known.owed == 1 then
            if redis.call('HEXISTS', owed, 'reset') == 1 then return end
            if redis.call('HDEL', owed, user_and_room) == 1 then
                known.owed = redis.call('EXISTS', owed)
                known.changed = true
                return
            end
            local reset = redis.call('HLEN', owed) >= most_owed and redis.call('HGET', KEYS[3], 'reset')
            if reset then
                redis.call('DEL', owed)
                user_and_room, event = 'reset', reset
            end
        end
        redis.call('HSET', owed, user_and_room, event)
        known.owed, known.changed = 1, true
    end

    local function append(place, user_and_room, event, whole, most, bytes)
        local known = level(place)
        if user_and_room == 'reset' and known.owed == 1 then
            redis.call('DEL', place .. ':presence')
            known.owed, known.changed = 0, true
        end
        if send(place, whole, tonumber(most), tonumber(bytes)) == FULL then owe(place, user_and_room, event) end
    end

    local number = redis.call('HINCRBY', KEYS[3], 'number', #told) - #told
    for i, one in ipairs(told) do
        local event, first, bounds, user_and_room = unpack(one)
        local whole = numbered(event, begun, number + i)
        for j = 0, services - 1 do
            local place, most, bytes = KEYS[first + j], ARGV[bounds + j]:match('(%d+) (%d+)')
            local sent, raised = true, nil
            if most then
                sent, raised = pcall(append, place, user_and_room, event, whole, most, bytes)
            else
                raised = redis.pcall('PUBLISH', place, whole)
                sent = type(raised) ~= 'table'
            end
            if not sent then failure = {place, type(raised) == 'table' and raised.err or tostring(raised)} end
        end
    end
    keep()
end
if problem then error(problem, 0) end
if failure then return {'FAILED', result, unpack(failure)} end
return result
