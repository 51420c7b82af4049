'use strict';
// A server that takes requests with a receipt only: plain http, or Express where it is installed.
// receipt_server.js MIDDLEWARE KEY-FILE PORT [EXPRESS]
const [middleware, keyFile, port, express] = process.argv.slice(2);
const { receipt } = require(middleware);
const guard = receipt({ keyFiles: [keyFile], windowMs: 10_000 });
const said = (req) => JSON.stringify({ url: req.originalUrl || req.url, method: req.method, headers: req.headers, receipt: req.tollgateReceipt });

if (express) {
  const app = require(express)();
  const router = require(express).Router();
  router.use(guard); // mounted, so that `url` is not what was asked for
  router.all(/.*/, (req, res) => res.end(said(req)));
  app.use('/api', router);
  app.listen(Number(port), '127.0.0.1');
} else {
  const http = require('node:http');
  const server = http.createServer((req, res) => guard(req, res, () => res.end(said(req))));
  server.on('upgrade', (req, socket) => {
    const reason = guard.judge(req);
    socket.end(`HTTP/1.1 ${reason ? 403 : 101} x\r\n\r\n`);
  });
  server.listen(Number(port), '127.0.0.1');
}
