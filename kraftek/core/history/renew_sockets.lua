-- KEYS: what is kept of some clients' connections. ARGV: for how many milliseconds from now, 0 to forget it; then for each the
-- socket that it belongs to. Returns which of them, from 0, are missing, and which belong to another one.
local missing, others = {}, {}
for i, key in ipairs(KEYS) do
    local owner = redis.call('HGET', key, 'owner')
    if not owner then
        missing[#missing + 1] = i - 1
    elseif owner ~= ARGV[i + 1] then
        others[#others + 1] = i - 1
    elseif ARGV[1] == '0' then
        redis.call('DEL', key)
    else
        redis.call('PEXPIRE', key, ARGV[1])
    end
end
return {missing, others}
