-- ARGV: where the scan is, a pattern of keys, how many keys at once, the prefixes of rooms and of users' sockets, the most
-- sockets of one key, and of all.
-- Returns where the scan goes on, and what there is in some rooms: {the room's name, users and sockets in turn}; then in
-- some users' sockets: {the user and room, the sockets}. Of a large room these are any.
local cursor, pattern, many, room_prefix, sockets_prefix, of_one, of_all = unpack(ARGV)
local scanned = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', many)
local rooms, sockets, total = {}, {}, 0
for _, key in ipairs(scanned[2]) do
    if total >= tonumber(of_all) then break end
    local in_room, place = key:sub(1, #room_prefix) == room_prefix, rooms
    local found
    if in_room then
        found = redis.pcall('HRANDFIELD', key, of_one, 'WITHVALUES')
    elseif key:sub(1, #sockets_prefix) == sockets_prefix then
        found, place = redis.pcall('ZRANGE', key, 0, of_one), sockets
    end
    if found and not found.err then
        place[#place + 1] = {key:sub(1 + (in_room and #room_prefix or #sockets_prefix)), unpack(found)}
        total = total + #found
    end
end
return {scanned[1], rooms, sockets}
