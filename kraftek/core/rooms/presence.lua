-- Announces what was told: {event, the key of its first place, the argument with the first length} for each event. The
-- event is JSON, with a line break where the epoch and the number belong. Then returns the result, and what failed.
-- What a service cannot be told (its key is no stream) does not affect the others.
-- Until services were told of the epoch of these data, they are told nothing else: then they read all rooms. The data may
-- name an older one while Redis refuses to write a new one: the gateway knows none then. If it knows another one, all data
-- were lost a moment ago, and what it tells is of the new one.
-- This is no function: making one would cost each entry and departure, most of which are not announced.
local known = told and services > 0 and redis.pcall('HMGET', KEYS[3], 'epoch', 'rooms')
if known and ARGV[services + 2] ~= '' and known[1] and known[1] == known[2] then
    local number = redis.call('HINCRBY', KEYS[3], 'number', #told) - #told
    for i, one in ipairs(told) do
        local event, place, length = unpack(one)
        local cut = event:find('\n', 1, true)
        local order = string.format('"epoch":"%s","number":%d', known[1], number + i)
        event = event:sub(1, cut - 1) .. order .. event:sub(cut + 1)
        for j = 0, services - 1 do
            local sent
            if ARGV[length + j] == '0' then
                sent = redis.pcall('PUBLISH', KEYS[place + j], event)
            else
                sent = redis.pcall('XADD', KEYS[place + j], 'MAXLEN', '~', ARGV[length + j], '*', 'event', event)
            end
            if type(sent) == 'table' then failure = {KEYS[place + j], sent.err} end
        end
    end
end
if problem then error(problem, 0) end
if failure then return {'FAILED', result, unpack(failure)} end
return result
