-- One request against a sliding window of two counters. KEYS[1]: a hash {s: start in ms, c: this window, p: the last}.
-- ARGV: limit, length of the window in ms. Answers {allowed, remaining, reset in ms, retry in ms}.
-- The arithmetic is that of window.rs; the clock is Redis's own, so that replicas need not agree on the time.
local limit, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 's', 'c', 'p')
local start, current, previous = tonumber(kept[1]), tonumber(kept[2]) or 0, tonumber(kept[3]) or 0
local fresh = false
if not start or now >= start + 2 * per or start > now + per then
  start, current, previous, fresh = now, 0, 0, true
elseif now >= start + per then
  start, current, previous, fresh = start + per, 0, current, true
end
local left = per - math.max(now - start, 0)
local used = previous * left + (current + 1) * per
if used > limit * per then
  local wait
  if current < limit then
    wait = left - math.floor((limit - 1 - current) * per / previous)
  else
    wait = left + per - math.min(math.floor((limit - 1) * per / current), per)
  end
  return {0, 0, math.max(left, wait), wait}
end
if fresh then
  redis.call('HSET', KEYS[1], 's', string.format('%.0f', start), 'c', 1, 'p', previous)
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', start + 2 * per - now))
else
  redis.call('HINCRBY', KEYS[1], 'c', 1)
end
return {1, math.floor((limit * per - used) / per), left, 0}
