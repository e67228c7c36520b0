-- Tells a room a piece of a text. What is kept is the text: texts.lua.
local MOST_TEXT, CHUNK = 262144, 1024

local function quoted(text)
    return (cjson.encode(text):gsub('\\/', '/'))
end

-- append_text(room, kind, key, text, flags, id, prefix, channel): `text` is a piece of the text `key`. `flags`: 'first' if the
-- text begins anew with it, 'last' if it ends. Returns as tell(), or nil and what was expected.
local function append_text(room, kind, key, text, flags, id, prefix, channel)
    if room == '' or kind == '' or key == '' then return nil, 'a room, a type and a key that are not empty' end
    if #key > 256 then return nil, 'a key of at most 256 bytes' end
    if kind == 'disconnect' or kind:sub(1, 8) == 'gateway:' then return nil, 'a type that is no command to gateways' end
    local first, last = flags:find('first', 1, true), flags:find('last', 1, true)
    local stand = rules_of(prefix)
    local history = stand and history_of(stand, 'room:' .. room)
    local piece, begin = quoted(text):sub(2, -2), '{"type":' .. quoted(kind) .. ',"append":{"key":' .. quoted(key)
    local function message(from)
        from = from and string.format(',"from":%.0f', from) or ''
        return begin .. from .. (last and ',"last":true' or '') .. '},"payload":"'
    end
    local function whole(told)
        return '{"roomId":' .. quoted(room) .. ',' .. told:sub(2)
    end
    if history and history.patterns and not kept(begin .. '}}', history.patterns) then history = nil end
    if not history then
        local told = message(first and 0) .. piece .. '"}'
        return {redis.call('PUBLISH', channel, whole(told)), 0, ''}
    end

    position_of(history)
    local known = known_at(history, id)
    if known then return {0, known, history.epoch} end
    local going = redis.pcall('HGET', history.texts, 'k' .. key)
    if type(going) == 'table' then
        redis.call('DEL', history.texts)
        going = nil
    end
    local began, entry, count, size = (going or ''):match('^(%d+) (%S+) (%d+) (%d+)$')
    local found = entry and redis.pcall('XRANGE', history.log, entry, '+', 'COUNT', 1)
    local old = found and not found.err and found[1] and found[1][1] == entry and found[1][2]
    if first or not old then began, count, size = string.format('%.0f', history.offset + 1), 0, 0 end
    local starts, most = count == 0, math.min(MOST_TEXT, history.most)
    count, size = tonumber(count), tonumber(size) + #piece
    local head = message(began)
    if #head + size > most then
        return nil, string.format('a text of at most %d bytes in all, which is what is kept, not %d', most, #head + size)
    end

    make_room(history, #head + #piece, old and entry, old, first)
    local last_chunk = count > 0 and redis.call('HGET', history.texts, 'c' .. began .. '.' .. count) or nil
    if not last_chunk or #last_chunk >= CHUNK then count, last_chunk = count + 1, '' end
    redis.call('HSET', history.texts, 'c' .. began .. '.' .. count, last_chunk .. piece)
    local offset, number, in_all, added = append(history, head, id, #head + #piece, 't', began, 'n', count, 's', size, 'k', key)
    if last then
        redis.call('HDEL', history.texts, 'k' .. key)
    else
        redis.call('HSET', history.texts, 'k' .. key, table.concat({began, added, count, size}, ' '))
    end
    redis.call('PEXPIRE', history.texts, history.ttl)
    local told = (starts and head or message()) .. piece .. '"}'
    return publishing(channel, history, told, whole(told), offset, number, in_all)()
end
