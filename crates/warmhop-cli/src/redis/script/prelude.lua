-- What a script finds around it. It runs once before each script, in a state of its own, and gets
-- what the endpoint offers as its argument; it returns what runs a script.
--
-- What ends a script from outside, such as too many steps, is an error that nothing may catch:
-- whatever catches errors looks at host.stopped() first.
local host = ...

local error, type, tostring, select, unpack = error, type, tostring, select, unpack
local setmetatable, rawget, rawset, pairs, ipairs = setmetatable, rawget, rawset, pairs, ipairs
local real_pcall, real_xpcall, real_resume = pcall, xpcall, coroutine.resume
local concat = table.concat

local function caught(ok, ...)
  if ok then return ok, ... end
  if host.stopped() then error(host.stopped(), 0) end
  -- What a command failed with is a table to a script.
  return ok, host.failure(...)
end

local function pcall(...) return caught(real_pcall(...)) end
local function xpcall(...) return caught(real_xpcall(...)) end
coroutine.resume = function(...) return caught(real_resume(...)) end

-- What host functions answer: whether it went well, and what came, or why not.
local function checked(ok, ...)
  if ok then return ... end
  error(host.position() .. tostring((...)), 0)
end

local function lifted(f)
  return function(...) return checked(f(...)) end
end

local redis = {
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  REPL_NONE = 0, REPL_SLAVE = 1, REPL_REPLICA = 1, REPL_AOF = 2, REPL_ALL = 3,
  REDIS_VERSION = host.version, REDIS_VERSION_NUM = host.version_number,
  sha1hex = lifted(host.sha1hex),
  log = lifted(host.log),
  setresp = lifted(host.setresp),
  breakpoint = function() return false end,
  debug = function() end,
  replicate_commands = function() return true end,
  set_repl = function() end,
}
-- No function of Lua: as the last call of a script it would take the place that errors tell.
redis.call = host.call
redis.pcall = function(...)
  local value = host.pcall(...)
  if host.stopped() then error(host.stopped(), 0) end
  return value
end
redis.error_reply = function(...)
  local text = ...
  if select('#', ...) ~= 1 or type(text) ~= 'string' then
    return { err = 'ERR wrong number or type of arguments' }
  end
  return { err = host.error_text(text) }
end
redis.status_reply = function(...)
  local text = ...
  if select('#', ...) ~= 1 or type(text) ~= 'string' then
    return { err = 'ERR wrong number or type of arguments' }
  end
  return { ok = text }
end

string.find = lifted(host.find)
string.match = lifted(host.match)
string.rep = lifted(host.rep)
string.dump = nil
local step, replaced = lifted(host.step), lifted(host.gsub)
local text_of = lifted(host.text_of)

string.gmatch = function(s, pattern)
  s, pattern = text_of(s, 'gmatch'), text_of(pattern, 'gmatch')
  local at = 0
  local function go_on(start, stop, ...)
    if not start then
      at = nil
      return nil
    end
    at = stop
    if stop == start then at = stop + 1 end
    return ...
  end
  return function()
    if not at then return nil end
    return go_on(step(s, pattern, at))
  end
end

string.gsub = function(s, pattern, by, most)
  s, pattern = text_of(s, 'gsub'), text_of(pattern, 'gsub')
  local kind = type(by)
  if kind == 'string' or kind == 'number' then
    return replaced(s, pattern, tostring(by), most)
  end
  if kind ~= 'table' and kind ~= 'function' then
    error(host.position() .. "bad argument #3 to 'gsub' (string/function/table expected)", 0)
  end
  local anchored = string.sub(pattern, 1, 1) == '^'
  local parts, count, at, len = {}, 0, 0, #s
  most = most or len + 1
  while count < most do
    local found = { step(s, pattern, at, true) }
    local start, stop = found[1], found[2]
    if start then
      count = count + 1
      local value
      if kind == 'table' then value = by[found[3]] else value = by(unpack(found, 3)) end
      if not value then
        value = string.sub(s, start + 1, stop)
      elseif type(value) ~= 'string' and type(value) ~= 'number' then
        error(host.position() .. 'invalid replacement value (a ' .. type(value) .. ')', 0)
      end
      parts[#parts + 1] = value
    end
    if start and stop > at then
      at = stop
    elseif at < len then
      parts[#parts + 1] = string.sub(s, at + 1, at + 1)
      at = at + 1
    else
      break
    end
    if anchored then break end
  end
  parts[#parts + 1] = string.sub(s, at + 1)
  return concat(parts), count
end
string.gfind = nil

-- In as many steps as it has elements, times their logarithm, whatever it is given; and counted.
table.sort = function(list, less)
  less = less or function(a, b) return a < b end
  local from, to, len, width = list, {}, #list, 1
  while width < len do
    for low = 1, len, 2 * width do
      local middle, high = low + width, low + 2 * width
      if middle > len + 1 then middle = len + 1 end
      if high > len + 1 then high = len + 1 end
      local a, b = low, middle
      for at = low, high - 1 do
        if a < middle and (b >= high or not less(from[b], from[a])) then
          to[at], a = from[a], a + 1
        else
          to[at], b = from[b], b + 1
        end
      end
    end
    from, to, width = to, from, 2 * width
  end
  if from ~= list then
    for at = 1, len do list[at] = from[at] end
  end
end

math.random = lifted(host.random)
math.randomseed = lifted(host.randomseed)

local cjson = { null = host.null, _NAME = 'cjson', _VERSION = '2.1.0' }
cjson.encode = lifted(host.json_encode)
cjson.decode = lifted(host.json_decode)
for _, name in ipairs {
  'encode_sparse_array', 'encode_max_depth', 'decode_max_depth', 'encode_number_precision',
  'encode_keep_buffer', 'encode_invalid_numbers', 'decode_invalid_numbers', 'decode_array_with_array_mt',
} do
  cjson[name] = function(...) return ... end
end

local cmsgpack = { _NAME = 'cmsgpack', _VERSION = 'lua-cmsgpack 0.4.0' }
cmsgpack.pack = lifted(host.msgpack_pack)
cmsgpack.unpack = lifted(host.msgpack_unpack)

local bit = {}
for _, name in ipairs {
  'tobit', 'bnot', 'band', 'bor', 'bxor', 'lshift', 'rshift', 'arshift', 'rol', 'ror', 'bswap', 'tohex',
} do
  local f = host.bit
  bit[name] = function(...) return checked(f(name, ...)) end
end

local offered = {
  KEYS = host.keys, ARGV = host.args, redis = redis, server = redis,
  cjson = cjson, cmsgpack = cmsgpack, bit = bit,
  string = string, table = table, math = math, coroutine = coroutine,
  os = { clock = lifted(host.clock) },
  pcall = pcall, xpcall = xpcall, error = error, assert = assert, type = type, tostring = tostring,
  tonumber = tonumber, select = select, unpack = unpack, pairs = pairs, ipairs = ipairs, next = next,
  rawget = rawget, rawset = rawset, rawequal = rawequal,
  setmetatable = setmetatable, getmetatable = getmetatable, _VERSION = _VERSION,
  collectgarbage = function(what) if what == 'count' then return host.memory() end return 0 end,
}
offered.loadstring = function(text, name)
  return host.load(text, name or text, offered._G)
end
offered.load = function(next_part, name)
  local parts = {}
  while true do
    local part = next_part()
    if part == nil or part == '' then break end
    parts[#parts + 1] = part
  end
  return host.load(concat(parts), name or '=(load)', offered._G)
end

local globals = setmetatable({}, {
  __index = function(_, name)
    local value = rawget(offered, name)
    if value == nil then
      error(host.position() .. "Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 0)
    end
    return value
  end,
  __newindex = function()
    error(host.position() .. 'Attempt to modify a readonly table', 0)
  end,
  __metatable = false,
})
offered._G = globals

-- A string's methods are found by its metatable, whose index is to be what a script sees.
local function with_position(err)
  local source, line = host.where()
  err = host.failure(err)
  if type(err) ~= 'table' then err = { err = 'ERR ' .. tostring(err) } end
  if source then rawset(err, 'source', source) rawset(err, 'line', line) end
  return err
end

return globals, function(script)
  local ok, value = real_xpcall(script, with_position)
  return ok, value
end
