-- Redis may refuse a write: the first one because it takes none at present, each for what it is. What was published cannot
-- be taken back. So that comes last, and the acknowledgement before it, which is a write as well.
local NOT_KEPT = '{"type":"error","payload":{"code":"TIMEOUT","message":"it was done, and its answer is not kept"}}'
local at, told, published = 3, {}, {}
while ARGV[at] do
    local first, last = at + 2, at + 1 + ARGV[at + 1]
    if ARGV[at] == 'tell' then told[#told + 1] = at end
    if ARGV[at] == 'unheard' or ARGV[at] == 'tell' or ARGV[at] == 'always' and ARGV[first]:upper() == 'PUBLISH' then
        published[#published + 1] = at
    elseif ARGV[at] == 'always' then
        redis.call(unpack(ARGV, first, last))
    end
    at = last + 1
end
if emit then emit() end
-- After those, which Redis may refuse for what they are: what stands in a history is told in any case.
local tellings = {}
for _, command in ipairs(told) do
    tellings[command] = telling_to(unpack(ARGV, command + 2, command + 1 + ARGV[command + 1]))
end
-- An entry acknowledged out of order would count as waiting until all earlier ones are acknowledged: if the stream has
-- no other group it is removed at once. (Removing every entry costs Redis 8 µs each; the gateway trims those in order.)
if stream then
    redis.call('XACK', stream, ARGV[1], ARGV[2])
    local behind = #redis.call('XPENDING', stream, ARGV[1], '-', ARGV[2], 1) > 0
    if behind and #redis.call('XINFO', 'GROUPS', stream) == 1 then redis.call('XDEL', stream, ARGV[2]) end
end
local receivers = 0
for _, command in ipairs(published) do
    local first, last = command + 2, command + 1 + ARGV[command + 1]
    if tellings[command] then
        tellings[command]()
    elseif ARGV[command] == 'always' then
        receivers = redis.call(unpack(ARGV, first, last))
    elseif receivers == 0 and redis.call(unpack(ARGV, first, last - 1)) == 0 then
        -- No gateway is there that would store it: until when the record of the request lives is not known here, 130
        -- seconds if nothing is configured. 10,000 may wait for a service, so of large ones it says only that there was one.
        local answer = ARGV[last - 1]
        if #answer > 4096 then answer = NOT_KEPT end
        redis.pcall('SET', ARGV[last], answer, 'NX', 'PX', 130000)
    end
end
return 1
