-- send(stream, body, most): appends the event and returns 1, or returns FULL when `most` events wait already.
-- MAXLEN is not used because it would remove events that nobody has handled. Only what every group has handled is removed.
local function send(stream, body, most)
    if redis.call('XLEN', stream) >= most and trim(stream) >= most then return FULL end
    redis.call('XADD', stream, '*', 'event', body)
    return 1
end
