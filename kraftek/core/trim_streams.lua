-- KEYS: streams, which need not exist. Trims them, and returns how many entries wait in all of them.
local waiting = 0
for _, stream in ipairs(KEYS) do
    if redis.call('EXISTS', stream) == 1 then waiting = waiting + trim(stream) end
end
return waiting
