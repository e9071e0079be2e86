// A server of HTTP/2 without TLS that ends each connection in good order after some streams.

const http2 = require('node:http2');

const STREAMS = 20;
let counted = 0;

const server = http2.createServer();

server.on('session', (session) => {
  let streams = 0;
  session.on('stream', () => {
    streams += 1;
    if (streams === STREAMS) {
      session.close();
    }
  });
});

server.on('request', (request, response) => {
  request.resume();
  request.on('end', () => {
    if (request.url === '/count') {
      counted += 1;
    }
    response.end(String(counted));
  });
});

server.listen(Number(process.env.PORT), '127.0.0.1');
