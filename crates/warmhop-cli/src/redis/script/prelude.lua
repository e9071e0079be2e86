-- What a script finds around it. It runs once in a state, before the first script there, and gets what the
-- endpoint offers as its argument. It returns what scripts see as globals, what runs a script with its keys
-- and arguments, and what tells whether no script has left anything for the next one.
--
-- What ends a script from outside, such as too many steps, is an error that nothing may catch:
-- whatever catches errors shows it to host.stopped() first.
local host = ...

local error, type, tostring, select, unpack = error, type, tostring, select, unpack
local setmetatable, rawget, rawset, pairs, ipairs = setmetatable, rawget, rawset, pairs, ipairs
local getmetatable, rawequal, next = getmetatable, rawequal, next
local real_pcall, real_xpcall, real_resume = pcall, xpcall, coroutine.resume
local concat = table.concat

local function caught(ok, ...)
  if ok then return ok, ... end
  local why = host.stopped((...))
  if why then error(why, 0) end
  -- What a command failed with is a table to a script.
  return ok, host.failure(...)
end

-- As with Redis, pcall answers the text of an error that is a table, and xpcall the table.
local function text_of_error(ok, ...)
  if ok then return ok, ... end
  local err = ...
  if type(err) == 'table' then
    local text = rawget(err, 'err')
    if type(text) == 'string' then return ok, text end
  end
  return ok, err
end

local function pcall(...) return text_of_error(caught(real_pcall(...))) end
local function xpcall(f, handler)
  if type(handler) ~= 'function' then return caught(real_xpcall(f, handler)) end
  return caught(real_xpcall(f, function(err)
    -- The first to see it: what ends the script goes by it untouched.
    if host.stopped(err) then return err end
    return handler(host.failure(err))
  end))
end
coroutine.resume = function(...) return caught(real_resume(...)) end

local redis = {
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  REPL_NONE = 0, REPL_AOF = 1, REPL_SLAVE = 2, REPL_REPLICA = 2, REPL_ALL = 3,
  REDIS_VERSION = host.version, REDIS_VERSION_NUM = host.version_number,
  sha1hex = host.sha1hex,
  log = host.log,
  setresp = host.setresp,
  acl_check_cmd = host.acl_check_cmd,
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

string.find = host.find
string.match = host.match
string.rep = host.rep
string.dump = nil
local step, replaced, text_of = host.step, host.gsub, host.text_of

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

math.random = host.random
math.randomseed = host.randomseed

local cjson = host.cjson
cjson.decode_array_with_array_mt = function(...) return ... end

local cmsgpack = { _NAME = 'cmsgpack', _VERSION = 'lua-cmsgpack 0.4.0' }
cmsgpack.pack = host.msgpack_pack
cmsgpack.unpack = host.msgpack_unpack
cmsgpack.unpack_one = host.msgpack_unpack_one
cmsgpack.unpack_limit = host.msgpack_unpack_limit

local struct = { pack = host.struct_pack, unpack = host.struct_unpack, size = host.struct_size }
local bit = host.bit

-- A library as scripts see it: it can be read.
local readonly = {}
local function shown(library)
  local it = setmetatable({}, {
    __index = library,
    __newindex = function() error(host.position() .. 'Attempt to modify a readonly table', 0) end,
    __metatable = false,
  })
  readonly[it] = true
  return it
end
local redis_shown = shown(redis)

local offered = {
  redis = redis_shown, server = redis_shown,
  cjson = shown(cjson), cmsgpack = shown(cmsgpack), bit = shown(bit), struct = shown(struct),
  string = shown(string), table = shown(table), math = shown(math), coroutine = shown(coroutine),
  pcall = pcall, xpcall = xpcall, error = error, assert = assert, type = type, tostring = tostring,
  tonumber = tonumber, select = select, unpack = unpack, pairs = pairs, ipairs = ipairs, next = next,
  rawget = rawget, rawequal = rawequal,
  rawset = function(t, name, value)
    if readonly[t] then error('Attempt to modify a readonly table', 0) end
    return rawset(t, name, value)
  end,
  setmetatable = setmetatable, getmetatable = getmetatable, _VERSION = _VERSION,
  gcinfo = host.memory,
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

-- A table behind a table: no function is called for a name that is there.
setmetatable(offered, {
  __index = function(_, name)
    error(host.position() .. "Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 0)
  end,
})
local globals = setmetatable({}, {
  __index = offered,
  __newindex = function()
    error(host.position() .. 'Attempt to modify a readonly table', 0)
  end,
  __metatable = false,
})
offered._G = globals
readonly[globals] = true

-- A string's methods are found by its metatable, whose index is to be what a script sees.
local function with_position(err)
  local source, line = host.where()
  err = host.failure(err)
  if type(err) ~= 'table' then err = { err = 'ERR ' .. tostring(err) } end
  if source then rawset(err, 'source', source) rawset(err, 'line', line) end
  return err
end

-- A string's methods are found by its metatable, which scripts can reach: its index shows them no more
-- than they see elsewhere.
getmetatable('').__index = offered.string

-- All tables that scripts can reach and that are there for the next one, but for strings' metatable. The
-- libraries themselves are behind what is shown of them: unless a script left something there, they are empty.
local shared = {}
for library in pairs(readonly) do shared[#shared + 1] = library end
local strings, index = getmetatable(''), offered.string

return globals, function(script, keys, arguments)
  offered.KEYS, offered.ARGV = keys, arguments
  local ok, value = real_xpcall(script, with_position)
  return ok, value
end, function()
  for at = 1, #shared do
    if next(shared[at]) ~= nil then return false end
  end
  return getmetatable(strings) == nil and next(strings, '__index') == nil
    and rawequal(next(strings), '__index') and rawequal(rawget(strings, '__index'), index)
end
