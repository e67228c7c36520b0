-- ARGV: last, the key of the rules by which messages to rooms are kept. What follows keeps none: where there are rules, KEPT
-- is returned and nothing was done.
if redis.call('EXISTS', ARGV[#ARGV]) == 1 then return KEPT end
