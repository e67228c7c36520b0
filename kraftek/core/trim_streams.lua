-- KEYS: the epoch; then streams of one service, which need not exist. ARGV: how many events and bytes may wait in each, '1'
-- if it is told of presence, the epoch that the gateway knows of, and how many presence events at once.
-- Removes what every group has handled, and tells the presence events that waited for room: rooms/presence.lua. Returns for
-- each stream how many entries and bytes wait, the bytes that were handled so far, the presence events that still wait, and
-- the dead letters.
local most, bytes, at_once = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[5])
local _, level, keep, rest = streams()
local begun, stream = nil, rest()

local function told(name, event)
    if not stream.takes(name, #event + 64, most, bytes) then return false end
    stream.append(name, numbered(event, begun, redis.call('HINCRBY', KEYS[1], 'number', 1)))
    return true
end

local function tell(name, owed)
    local reset = redis.call('HGET', owed, 'reset')
    if reset then
        if told(name, reset) then redis.call('DEL', owed) end
        return
    end
    local found = redis.call('HRANDFIELD', owed, at_once, 'WITHVALUES')
    for i = 1, #found, 2 do
        if not told(name, found[i + 1]) then return end
        redis.call('HDEL', owed, found[i])
    end
end

local levels = {}
for i = 2, #KEYS do
    local name, left = KEYS[i], 0
    local known = level(name)
    stream.trim(name)
    stream.measure(name)
    if known.owed == 1 then
        local owed = name .. ':presence'
        if ARGV[3] ~= '1' then
            redis.call('DEL', owed)
        else
            begun = begun or begun_epoch(KEYS[1], ARGV[4])
            if begun then tell(name, owed) end
        end
        left = redis.call('HLEN', owed)
        if left == 0 then known.owed, known.changed = 0, true end
    end
    local dead = redis.pcall('XLEN', name .. ':dead')
    dead = type(dead) == 'number' and dead or 0
    levels[#levels + 1] = {known.length, known.sum - known.handled, known.handled, left, dead}
end
keep()
return levels
