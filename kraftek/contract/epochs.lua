-- begun_epoch(key, epoch): the epoch of these data, if services were told of it. Until then they are told nothing else:
-- after that they read all rooms. `epoch` is what the gateway knows. The data may name an older one while Redis refuses to
-- write a new one: the gateway knows none then. If it knows another one, all data were lost a moment ago, and what it tells
-- is of the new one.
local function begun_epoch(key, epoch)
    if epoch == '' then return nil end
    local known = redis.pcall('HMGET', key, 'epoch', 'rooms')
    return known[1] and known[1] == known[2] and known[1]
end

-- numbered(event, epoch, number): the event, which has a line break where these belong.
local function numbered(event, epoch, number)
    local cut = event:find('\n', 1, true)
    return string.format('%s"epoch":"%s","number":%d%s', event:sub(1, cut - 1), epoch, number, event:sub(cut + 1))
end
