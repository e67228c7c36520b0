-- keep_type(type, key): a key of another type is somebody else's writing; it is removed, and counts as absent.
local function keep_type(type, key)
    if redis.call('TYPE', key).ok ~= type then redis.call('DEL', key) end
end
