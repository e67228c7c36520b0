-- KEYS: the gateway's entries, the set of lost entries, the epoch; then the channel or stream of each service with
-- presence. ARGV: the number of these, and the bounds of each stream, 0 for a channel; then the epoch, and the event.
-- Tells services of a new epoch, once: whichever gateway comes first. One that has not noticed yet that all data were lost
-- once more tells nothing. The result is Redis's time.
keep_type('set', KEYS[1])
keep_type('set', KEYS[2])
result = now
local begun, event = ARGV[services + 2], ARGV[services + 3]
local known = redis.call('HMGET', KEYS[3], 'epoch', 'rooms')
if known[1] == begun and known[2] ~= begun then
    redis.call('HSET', KEYS[3], 'rooms', begun, 'number', 0, 'reset', event)
    told = {{event, 4, 2, 'reset'}}
end
