-- KEYS: records of requests, and keys of late answers; then the epoch
-- ARGV: bytes that are given of each at most, and the epoch, if the gateway knows it
-- Answers with what each holds, or with the size of what is larger; with nothing if the data are of another epoch: that a
-- record is missing there says nothing.
local most, found = tonumber(ARGV[1]), {}
if of_another_epoch(KEYS[#KEYS], ARGV[2]) then return false end
for i = 1, #KEYS - 1 do
    local key = KEYS[i]
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
