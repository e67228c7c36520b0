-- kept(message, patterns): whether the type of the message is one of those that the history of the room keeps; or nil, and
-- why that cannot be told. The SDKs write the type first. Where something else comes first the message is decoded: of the
-- largest that are, 256 KiB, that takes 2 ms.
local function type_of(message)
    local first = message:match('^%s*{%s*"type"%s*:%s*"([^"\\%c]*)"')
    if first then return first end
    if #message > 262144 then return nil, 'the type as the first key of a message of more than 256 KiB' end
    local read, decoded = pcall(cjson.decode, message)
    local type_read = read and type(decoded) == 'table' and decoded.type
    if type(type_read) == 'string' then return type_read end
    return nil, 'a JSON object with a type as the message'
end

local function kept(message, patterns)
    local kind, expected = type_of(message)
    if not kind then return nil, expected end
    local parts = {}
    for part in (kind .. ':'):gmatch('([^:]*):') do parts[#parts + 1] = part end
    for _, pattern in ipairs(patterns) do
        local covers_it = #pattern == #parts
        for i, part in ipairs(pattern) do covers_it = covers_it and (part == '*' or part == parts[i]) end
        if covers_it then return true end
    end
    return false
end
