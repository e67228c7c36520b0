-- KEYS: records of requests, and keys of late answers
-- ARGV: bytes that are given of each at most
-- Answers with what each holds, or with the size of what is larger.
local most, found = tonumber(ARGV[1]), {}
for i, key in ipairs(KEYS) do
    local held = redis.pcall('GETRANGE', key, 0, most)
    if type(held) == 'table' and not held.err:find('WRONGTYPE', 1, true) then return held end
    if type(held) ~= 'string' or held == '' then
        found[i] = false
    elseif #held > most then
        found[i] = redis.call('STRLEN', key)
    else
        found[i] = held
    end
end
return found
