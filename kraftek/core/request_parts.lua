-- KEYS: the stream of the parts of an answer. ARGV: a run of the handler, and a number: all parts after it are wanted; and how
-- many at most. Returns the run that the stream is of, and the entries; of another run the first.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return {} end
local run = first[2][2]
local from = run == ARGV[1] and string.format('%.0f', ARGV[2] + 1) or '-'
return {run, redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[3])}
