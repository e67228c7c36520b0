-- tell(room, message, id, prefix, broadcast): tells a room something, and keeps it if history is kept of that room: first in
-- its log, and only then is it published, so that Redis has refused by then what it refuses. An id that is known is told
-- once. Returns {how many took it, its offset, the epoch}; the offset is 0 where no history is kept.
local function append(history, order, message, id)
    local offset, told = history.offset + 1, history.bytes + #message
    local entry = string.format('%.0f-%.0f', offset, history.bytes)
    order.offset = order.offset + 1
    redis.call('HSET', order.key, 'told', order.offset)
    redis.call('HSET', history.position, 'offset', offset, 'bytes', told, 'told', order.offset)
    local added = redis.pcall('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', order.offset)
    if type(added) == 'table' then
        -- A key of another type, or the log of another position.
        redis.call('DEL', history.log)
        redis.call('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', order.offset)
    end
    if told - history.floor > history.most then
        local floor
        repeat
            local oldest = redis.call('XRANGE', history.log, '-', '+', 'COUNT', 1)[1][1]
            floor = tonumber(oldest:match('-(%d+)$'))
            local fits = told - floor <= history.most or oldest == entry
            if not fits then redis.call('XDEL', history.log, oldest) end
        until fits
        redis.call('HSET', history.position, 'floor', floor)
    end
    if id ~= '' then
        redis.call('ZADD', history.ids, offset, id)
        redis.call('ZREMRANGEBYSCORE', history.ids, '-inf', offset - history.count)
        redis.call('PEXPIRE', history.ids, history.ttl)
    end
    redis.call('PEXPIRE', history.log, history.ttl)
    outlive(history)
    return offset
end

-- Whether every gateway that has a lease follows these rules.
local function all_follow(prefix)
    local gateways = redis.call('ZRANGE', prefix .. 'gateways', 0, -1)
    if #gateways == 0 then return true end
    local now = tonumber(redis.call('TIME')[1])
    for _, until_when in ipairs(redis.call('ZMSCORE', prefix .. OWN .. 'following', unpack(gateways))) do
        if not until_when or tonumber(until_when) < now then return false end
    end
    return true
end

local function tell(room, message, id, prefix, broadcast)
    local start, stop = message:find('^%s*{%s*')
    if not start or message:byte(stop + 1) ~= 34 then
        return redis.error_reply('ERR kraftek_tell: expected a JSON object with a type as the message')
    end
    local function whole(more)
        return '{"roomId":' .. cjson.encode(room) .. more .. ',' .. message:sub(stop + 1)
    end
    local history = history_of(prefix, 'room:' .. room)
    if history and history.patterns then
        local keeps, expected = kept(message, history.patterns)
        if keeps == nil then return redis.error_reply('ERR kraftek_tell: expected ' .. expected) end
        if not keeps then history = nil end
    end
    if not history then return {redis.call('PUBLISH', prefix .. broadcast, whole('')), 0, ''} end
    position_of(history)
    if id ~= '' then
        local known = redis.pcall('ZSCORE', history.ids, id)
        if type(known) == 'table' then
            redis.call('DEL', history.ids)
        elseif known then
            return {0, tonumber(known), history.epoch}
        end
    end
    local order = order_of(prefix)
    local offset = append(history, order, message, id)
    local where = history.epoch .. ' ' .. string.format('%.0f', offset) .. ' ' .. in_order(order)
    local took = redis.call('PUBLISH', history.channel, where .. ' ' .. message)
    if not all_follow(prefix) then
        took = took + redis.call('PUBLISH', prefix .. broadcast, whole(',"offset":' .. string.format('%.0f', offset)))
    end
    return {took, offset, history.epoch}
end
