-- Limits that several gateways share. One call decides about a request, or books its end; all of it or nothing.
--
-- KEYS[1]   sorted set of the gateways, by the second in which each was last heard
-- KEYS[2..] a hash for each account: r:SECOND requests, t:SECOND tokens, d:DAY, m:MONTH tokens,
--           c:GATEWAY requests in flight at that gateway
-- ARGV      action, gateway, tokens reserved, day, month, then by action:
--   reserve  for each account: limits of concurrency, requests, tokens, day, month; -1 where there is none
--            returns {0, second}, or {account, dimension, limit, seconds to wait}
--   book     second of the reservation (-1: none), tokens used, change of requests, change of requests in flight
--   adopt    for each account: requests in flight at this gateway
-- Time is the server's, so that the gateways' clocks matter only for the day and month a request counts in.

local WINDOW, GATEWAY_LIVES, KEPT = 60, 15, 34 * 86400
local PERIODS_KEPT, MONTH_SECONDS = 4, 2629746
local now = tonumber(redis.call('TIME')[1])
local today, this_month = math.floor(now / 86400), 1970 * 12 + 1 + math.floor(now / MONTH_SECONDS)
local action, gateway, reserved = ARGV[1], ARGV[2], tonumber(ARGV[3])
local day, month = ARGV[4], ARGV[5]
local FIRST = 6

redis.call('ZADD', KEYS[1], now, gateway)

local function lives(name)
    local heard = redis.call('ZSCORE', KEYS[1], name)
    return heard and tonumber(heard) >= now - GATEWAY_LIVES
end

-- What an account has used, and its fields that make no difference any more.
local function read(key)
    local seen = { requests = {}, tokens = {}, flight = 0, day = 0, month = 0, stale = {} }
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
        local kind, name, value = fields[i]:sub(1, 1), fields[i]:sub(3), tonumber(fields[i + 1])
        local keep = true
        if kind == 'r' or kind == 't' then
            local second = tonumber(name)
            keep = second >= now - WINDOW and second <= now
            if keep then
                table.insert(kind == 'r' and seen.requests or seen.tokens, { second, value })
            end
        elseif kind == 'c' then
            keep = lives(name)
            if keep then seen.flight = seen.flight + value end
        elseif kind == 'd' then
            keep = tonumber(name) > today - PERIODS_KEPT
            if name == day then seen.day = value end
        elseif kind == 'm' then
            keep = tonumber(name) > this_month - PERIODS_KEPT
            if name == month then seen.month = value end
        end
        if not keep then table.insert(seen.stale, fields[i]) end
    end
    return seen
end

-- Seconds until `cost` fits under `limit`; nil where it fits now.
local function wait(charges, cost, limit)
    local excess = cost - limit
    for _, charge in ipairs(charges) do excess = excess + charge[2] end
    if excess <= 0 then return nil end
    table.sort(charges, function(a, b) return a[1] < b[1] end)
    for _, charge in ipairs(charges) do
        excess = excess - charge[2]
        if excess <= 0 then return charge[1] + WINDOW + 1 - now end
    end
    return 1
end

local function refusal(seen, at)
    local concurrency, requests, tokens = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local a_day, a_month = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if concurrency >= 0 and seen.flight >= concurrency then return { 'concurrency', concurrency, 1 } end
    local seconds = requests >= 0 and wait(seen.requests, 1, requests)
    if seconds then return { 'requests', requests, seconds } end
    seconds = tokens >= 0 and wait(seen.tokens, math.min(reserved, tokens), tokens)
    if seconds then return { 'tokens', tokens, seconds } end
    if a_day >= 0 and seen.day + math.min(reserved, a_day) > a_day then return { 'day', a_day, -1 } end
    if a_month >= 0 and seen.month + math.min(reserved, a_month) > a_month then return { 'month', a_month, -1 } end
    return nil
end

if action == 'reserve' then
    local accounts = {}
    for i = 2, #KEYS do
        accounts[i] = read(KEYS[i])
        local refused = refusal(accounts[i], FIRST + (i - 2) * 5)
        if refused then return { i - 1, refused[1], refused[2], refused[3] } end
    end
    for i = 2, #KEYS do
        for _, field in ipairs(accounts[i].stale) do redis.call('HDEL', KEYS[i], field) end
        redis.call('HINCRBY', KEYS[i], 'r:' .. now, 1)
        redis.call('HINCRBY', KEYS[i], 't:' .. now, reserved)
        redis.call('HINCRBY', KEYS[i], 'd:' .. day, reserved)
        redis.call('HINCRBY', KEYS[i], 'm:' .. month, reserved)
        redis.call('HINCRBY', KEYS[i], 'c:' .. gateway, 1)
        redis.call('EXPIRE', KEYS[i], KEPT)
    end
    return { 0, now }
end

if action == 'book' then
    local second, used = tonumber(ARGV[FIRST]), tonumber(ARGV[FIRST + 1])
    local requests, flight = tonumber(ARGV[FIRST + 2]), tonumber(ARGV[FIRST + 3])
    if second < 0 then
        reserved, second = 0, now
    end
    local over = used - reserved
    for i = 2, #KEYS do
        if over > 0 then
            redis.call('HINCRBY', KEYS[i], 't:' .. now, over)
        elseif over < 0 and redis.call('HEXISTS', KEYS[i], 't:' .. second) == 1 then
            redis.call('HINCRBY', KEYS[i], 't:' .. second, over)
        end
        if requests > 0 or (requests < 0 and redis.call('HEXISTS', KEYS[i], 'r:' .. second) == 1) then
            redis.call('HINCRBY', KEYS[i], 'r:' .. second, requests)
        end
        redis.call('HINCRBY', KEYS[i], 'd:' .. day, over)
        redis.call('HINCRBY', KEYS[i], 'm:' .. month, over)
        if flight ~= 0 then redis.call('HINCRBY', KEYS[i], 'c:' .. gateway, flight) end
        redis.call('EXPIRE', KEYS[i], KEPT)
    end
    return { 0, now }
end

for i = 2, #KEYS do
    redis.call('HSET', KEYS[i], 'c:' .. gateway, ARGV[FIRST + i - 2])
    redis.call('EXPIRE', KEYS[i], KEPT)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600)
return { 0, now }
