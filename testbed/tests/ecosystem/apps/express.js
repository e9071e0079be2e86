// A counter in an express session, kept by connect-redis.
const express = require('express');
const session = require('express-session');
const { RedisStore } = require('connect-redis');
const { createClient } = require('redis');

const client = createClient({ url: process.env.REDIS_URL });
client.on('error', (error) => console.error(error));

client.connect().then(() => {
    const app = express();
    app.get('/healthz', (request, response) => response.send('ok'));
    const store = new RedisStore({ client, prefix: 'express:', ttl: 600 });
    app.use(session({ store, secret: 'test', resave: false, saveUninitialized: false }));
    app.get('/visit', (request, response) => {
        request.session.visits = (request.session.visits || 0) + 1;
        response.send(String(request.session.visits));
    });
    app.get('/peek', (request, response) => response.send(String(request.session.visits || 0)));
    app.get('/logout', (request, response, next) =>
        request.session.destroy((error) => (error ? next(error) : response.send('bye'))));
    app.get('/count', (request, response, next) =>
        store.length((error, length) => (error ? next(error) : response.send(String(length)))));
    app.listen(process.env.PORT, '127.0.0.1');
});
