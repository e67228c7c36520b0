-- KEYS: the key of the stream's lease, the stream. ARGV: the lease, the group, this instance, then for each entry its id, how often it was
-- delivered, this time included, and '1' if its fields are wanted.
-- Notes that they are given to handlers, so that an entry which ends its instances is known. Returns for each 1, or its
-- fields, or 0 if it is not pending any more; nothing when that lease is over.
local stream, lease, group, me = KEYS[2], unpack(ARGV)
if redis.call('GET', KEYS[1]) ~= lease then return {} end
local begun = {}
for i = 4, #ARGV, 3 do
    local id = ARGV[i]
    local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
    local answer = #claimed > 0 and 1 or 0
    if answer == 1 and ARGV[i + 2] == '1' then
        local found = redis.call('XRANGE', stream, id, id)[1]
        if not found then redis.call('XACK', stream, group, id) end -- it was trimmed
        answer = found and found[2] or 0
    end
    begun[#begun + 1] = answer
end
return begun
