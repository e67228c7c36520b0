-- Redis's clock: now, in microseconds since 1970. A Lua number holds them exactly; text() keeps all their digits.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(microseconds)
    return string.format('%.0f', microseconds)
end
