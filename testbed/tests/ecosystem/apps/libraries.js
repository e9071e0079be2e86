// What libraries of Node.js keep in Redis, asked at one endpoint after the other: as libraries.py,
// whose lines it prints.
'use strict';
const [A, B, C] = process.env.REDIS_PORTS.split(',').map(Number);
const { createClient } = require('redis');
const Redis = require('ioredis').Redis || require('ioredis');

const opened = [];
async function client(port) {
  const it = createClient({ socket: { host: '127.0.0.1', port } });
  it.on('error', () => {});
  await it.connect();
  return it;
}
function io(port, options) {
  const it = new Redis({ host: '127.0.0.1', port, maxRetriesPerRequest: null, ...options });
  it.on('error', () => {});
  opened.push(it);
  return it;
}
const later = (ms) => new Promise((done) => setTimeout(done, ms));
async function until(ask) {
  const end = Date.now() + 20000;
  while (Date.now() < end) {
    const answer = await ask();
    if (answer) return answer;
    await later(20);
  }
  throw new Error('it does not come');
}
async function refused(promise) {
  try {
    await promise;
    return 'no';
  } catch (error) {
    return error && error.name ? error.name : 'yes';
  }
}

async function* redlock() {
  const Redlock = require('redlock');
  const at = (port) => new Redlock([io(port)], { retryCount: 0 });
  const one = await at(A).lock('lock:js', 60000);
  yield ['acquired', one.attempts >= 1];
  yield ['acquired by another', await refused(at(B).lock('lock:js', 60000))];
  yield null;
  yield ['acquired while held', await refused(at(C).lock('lock:js', 60000))];
  await at(B).extend(one, 30000);
  await at(B).unlock(one);
  const other = await at(C).lock('lock:js', 60000);
  yield ['acquired when released', !!other];
  yield ['released by who does not own it', await refused(at(B).unlock(one))];
}

async function* redisSemaphore() {
  const { Mutex, Semaphore } = require('redis-semaphore');
  const options = { lockTimeout: 60000, acquireTimeout: 10, refreshInterval: 0, retryInterval: 5 };
  const mutex = (port, more) => new Mutex(io(port), 'm', { ...options, ...more });
  const one = mutex(A);
  await one.acquire();
  yield ['acquired', one.isAcquired];
  yield ['acquired by another', await mutex(B).tryAcquire()];
  const semaphores = [A, B].map((port) => new Semaphore(io(port), 's', 2, options));
  yield ['semaphore', await Promise.all(semaphores.map((it) => it.tryAcquire()))];
  yield null;
  yield ['acquired while held', await mutex(C).tryAcquire()];
  yield ['a third', await new Semaphore(io(C), 's', 2, options).tryAcquire()];
  const again = mutex(B, { identifier: one.identifier, acquiredExternally: true });
  await again.release();
  yield ['acquired when released', await mutex(C).tryAcquire()];
}

async function* rateLimiterFlexible() {
  const { RateLimiterRedis } = require('rate-limiter-flexible');
  const at = (port) =>
    new RateLimiterRedis({ storeClient: io(port), keyPrefix: 'flex', points: 3, duration: 86400 });
  const hit = async (port) => {
    try {
      return (await at(port).consume('ada')).remainingPoints;
    } catch (error) {
      return error instanceof Error ? error.message : 'refused';
    }
  };
  yield ['left', [await hit(A), await hit(B)]];
  yield null;
  yield ['left', [await hit(C), await hit(B), await hit(C)]];
  await at(B).penalty('ada', 2);
  yield ['points', (await at(C).get('ada')).consumedPoints];
  yield ['deleted', await at(C).delete('ada')];
}

async function codes(url, count) {
  const got = [];
  for (let at = 0; at < count; at++) got.push((await fetch(url)).status);
  return got;
}

async function* rateLimitRedis() {
  const express = require('express');
  const { rateLimit } = require('express-rate-limit');
  const { RedisStore } = require('rate-limit-redis');
  const served = async (port, count) => {
    const it = await client(port);
    const app = express();
    app.use(
      rateLimit({
        windowMs: 86400000,
        limit: 3,
        keyGenerator: () => 'ada',
        store: new RedisStore({ sendCommand: (...words) => it.sendCommand(words) }),
      }),
    );
    app.get('/', (_, response) => response.send('in'));
    const server = await new Promise((done) => {
      const server = app.listen(0, '127.0.0.1', () => done(server));
    });
    const got = await codes(`http://127.0.0.1:${server.address().port}/`, count);
    server.close();
    it.destroy();
    return got;
  };
  yield ['in', [await served(A, 1), await served(B, 1)]];
  yield null;
  yield ['in', [await served(B, 1), await served(C, 2)]];
}

async function* fastifyRateLimit() {
  const served = async (port, count) => {
    const app = require('fastify')();
    await app.register(require('@fastify/rate-limit'), {
      max: 3,
      timeWindow: 86400000,
      keyGenerator: () => 'ada',
      redis: io(port),
    });
    app.get('/', async () => 'in');
    const got = [];
    for (let at = 0; at < count; at++) got.push((await app.inject('/')).statusCode);
    await app.close();
    return got;
  };
  yield ['in', [await served(A, 1), await served(B, 1)]];
  yield null;
  yield ['in', [await served(B, 1), await served(C, 2)]];
}

async function* socketIo() {
  const { Server } = require('socket.io');
  const connect = require('socket.io-client').io;
  const { createAdapter } = require('@socket.io/redis-adapter');
  const told = async (ports, event) => {
    const [servers, clients, heard] = [[], [], []];
    for (const [at, port] of ports.entries()) {
      const [pub, sub] = [await client(port), await client(port)];
      const server = new Server({ adapter: createAdapter(pub, sub) });
      const http = require('http').createServer();
      server.attach(http);
      await new Promise((done) => http.listen(0, '127.0.0.1', done));
      server.on('connection', (socket) => socket.join('r'));
      server.close_all = () => {
        server.close();
        pub.destroy();
        sub.destroy();
      };
      servers.push(server);
      const socket = connect(`http://127.0.0.1:${http.address().port}`, { transports: ['websocket'] });
      socket.on(event, (message) => heard.push([at, message]));
      await new Promise((done) => socket.on('connect', done));
      clients.push(socket);
    }
    // Both are heard of once they listen.
    await until(async () => (await servers[0].fetchSockets()).length === ports.length);
    servers[0].to('r').emit(event, 'from the first');
    servers[1].to('r').emit(event, 'from the second');
    await until(() => heard.length >= 2 * ports.length);
    const sockets = (await servers[1].in('r').fetchSockets()).length;
    clients.forEach((it) => it.close());
    servers.forEach((it) => it.close_all());
    return [heard.map(String).sort(), sockets];
  };
  yield ['told', await told([A, B], 'one')];
  yield null;
  yield ['told', await told([B, C], 'two')];
}

async function* bullmq() {
  const { Queue, Worker } = require('bullmq');
  const of = (port) => ({
    connection: { host: '127.0.0.1', port, maxRetriesPerRequest: null },
    prefix: '{bull}',
  });
  const work = async (port, count) => {
    const results = [];
    const worker = new Worker('jobs', async (job) => job.data.n * 2, of(port));
    worker.on('error', () => {});
    worker.on('completed', (_, result) => results.push(result));
    await until(() => results.length >= count);
    await worker.close();
    return results;
  };
  const first = new Queue('jobs', of(A));
  first.on('error', () => {});
  await first.add('double', { n: 4 });
  yield ['done', await work(B, 1)];
  yield null;
  const second = new Queue('jobs', of(B));
  await second.add('double', { n: 5 });
  yield ['done', await work(C, 1)];
  await second.close();
}

const LIBRARIES = {
  redlock,
  'redis-semaphore': redisSemaphore,
  'rate-limiter-flexible': rateLimiterFlexible,
  'express-rate-limit, rate-limit-redis': rateLimitRedis,
  '@fastify/rate-limit': fastifyRateLimit,
  '@socket.io/redis-adapter': socketIo,
  bullmq,
};

async function half(name, steps) {
  let failed;
  const late = later(45000).then(() => {
    throw new Error('it takes too long');
  });
  late.catch(() => {});
  try {
    for (;;) {
      const { value, done } = await Promise.race([steps.next(), late]);
      if (done) return false;
      if (value === null) return true;
      console.log(`${name}: ${value[0]}: ${JSON.stringify(value[1])}`);
    }
  } catch (error) {
    failed = error;
  }
  console.log(`${name}: failed: ${String(failed && failed.stack).split('\n').slice(0, process.env.TRACE ? 9 : 1).join(' | ')}`);
  return false;
}

async function main() {
  const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(LIBRARIES);
  const going = [];
  for (const name of names) {
    const steps = LIBRARIES[name]();
    if (await half(name, steps)) going.push([name, steps]);
  }
  console.log('half');
  await new Promise((done) => process.stdin.once('data', done));
  for (const [name, steps] of going) await half(name, steps);
  console.log('end');
  process.exit(0);
}
process.on('unhandledRejection', () => {});
main();
