'use strict';
// Refuses requests that are not on record at Tollgate: those without a valid `Tollgate-Receipt` (docs/receipt.md).
// No dependencies; for Node.js 18 or later.
//
//   const { receipt } = require('./receipt-middleware');
//   const guard = receipt({ keyFiles: ['/run/secrets/tollgate-receipt.key'] });
//   app.use(guard);                                                              // Express, before everything else
//   http.createServer((req, res) => guard(req, res, () => handle(req, res)));    // plain http
//   server.on('upgrade', (req, socket) => guard.judge(req) && socket.destroy()); // websockets: nothing else sees these
//
// A request that passes has `req.tollgateReceipt = { log, seq, leaf, time }`: store it beside what the request did.

const { createHmac, timingSafeEqual } = require('node:crypto');
const { readFileSync } = require('node:fs');

const FORM =
  /^v1;log=([0-9a-f-]{36});seq=([1-9][0-9]{0,19});leaf=([0-9a-f]{64});time=([0-9]{1,15});mac=([0-9a-f]{64})$/;
const KEY_BYTES_MIN = 32;

/**
 * keyFiles    files with the key of `[audit.receipt]`; two while it is being replaced
 * log         the identifier of the one log whose receipts count; any if not given
 * windowMs    how old a receipt may be, and how far ahead of this machine's clock
 * seenMax     receipts remembered within that time, so that none is taken twice; when they are more, none is taken
 * refuse      (request, response, reason) => answers what is refused
 */
function receipt({ keyFiles, log, windowMs = 30_000, seenMax = 1_000_000, refuse = answer }) {
  const keys = [].concat(keyFiles).map(readKey);
  if (keys.length === 0) throw new Error('receipt: keyFiles names no file');
  const seen = new Map(); // in the order in which they came

  function forget(now) {
    for (const [name, until] of seen) {
      if (until >= now) return;
      seen.delete(name);
    }
  }

  /** Why the request is refused; null if it is not. A receipt counts once. */
  function judge(request) {
    const value = request.headers['tollgate-receipt'];
    if (value === undefined) return 'missing';
    const parts = FORM.exec(value);
    if (!parts) return 'malformed';
    const [, from, seq, leaf, time, mac] = parts;
    const { 'x-request-id': id = '', host = '' } = request.headers;
    const target = request.originalUrl || request.url; // Express cuts `url` where it is mounted
    const signed = ['tollgate-receipt v1', from, seq, leaf, time, id, request.method, host, target].join('\n');
    const given = Buffer.from(mac, 'hex');
    const ours = (key) => createHmac('sha256', key).update(signed, 'latin1').digest();
    if (!keys.some((key) => timingSafeEqual(ours(key), given))) return 'forged';
    if (log !== undefined && from !== log) return 'other_log';
    const now = Date.now();
    if (Math.abs(now - Number(time)) > windowMs) return 'expired';
    forget(now);
    const name = `${from};${seq}`;
    if (seen.has(name)) return 'replayed';
    if (seen.size >= seenMax) return 'too_many';
    seen.set(name, now + 2 * windowMs);
    request.tollgateReceipt = { log: from, seq, leaf, time: Number(time) };
    return null;
  }

  function guard(request, response, next) {
    const reason = judge(request);
    if (reason === null) return next();
    return refuse(request, response, reason);
  }
  guard.judge = judge;
  return guard;
}

/** As Tollgate reads it: without white space around it. */
function readKey(file) {
  const text = readFileSync(file).toString('latin1').replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, '');
  if (text.length < KEY_BYTES_MIN) throw new Error(`receipt: ${file} holds no key of ${KEY_BYTES_MIN} bytes or more`);
  return Buffer.from(text, 'latin1');
}

function answer(_request, response, reason) {
  response.statusCode = reason === 'too_many' ? 503 : 403;
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ error: 'receipt', reason }) + '\n');
}

module.exports = { receipt };
