-- keep_type(type, key): removes a key of another type, which another program wrote: it counts as absent.
local function keep_type(type, key)
    if redis.call('TYPE', key).ok ~= type then redis.call('DEL', key) end
end
