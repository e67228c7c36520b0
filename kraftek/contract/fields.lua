-- fields(reply): names and values in turn, as XINFO answers, as a table.
local function fields(reply)
    local named = {}
    for i = 1, #reply, 2 do named[reply[i]] = reply[i + 1] end
    return named
end
