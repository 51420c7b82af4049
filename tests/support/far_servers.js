// Data sources that say who has connected: `node far_servers.js KIND ADDRESS PORT CERT KEY`.
// https and gRPC are real servers; `tds`, `mongo`, `smtp` and `oracle` speak as much of SQL Server's, MongoDB's, a mail
// server's and Oracle's protocol as their drivers need for one question.
'use strict';
const fs = require('fs');
const tls = require('tls');

const [kind, address, port, certFile, keyFile] = process.argv.slice(2);
const secure = { cert: fs.readFileSync(certFile), key: fs.readFileSync(keyFile) };
const ready = () => console.log('ready');

// Calls `take` with all that has arrived; it gives how many bytes it has used, 0 if it needs more.
function messages(socket, take) {
  let heard = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (more) => {
    heard = Buffer.concat([heard, more]);
    for (let used = take(heard); used > 0; used = take(heard)) heard = heard.subarray(used);
  });
}

const servers = {
  https() {
    const answer = (request, response) => response.end(request.socket.remoteAddress);
    require('https').createServer(secure, answer).listen(port, address, ready);
  },

  grpc() {
    const grpc = require('@grpc/grpc-js');
    const bytes = (b) => b;
    const server = new grpc.Server();
    const method = {
      path: '/test.Who/Asks', requestStream: false, responseStream: false,
      requestSerialize: bytes, requestDeserialize: bytes, responseSerialize: bytes, responseDeserialize: bytes,
    };
    server.addService({ Asks: method }, { Asks: (call, done) => done(null, Buffer.from(call.getPeer())) });
    const credentials = grpc.ServerCredentials.createSsl(null, [{ cert_chain: secure.cert, private_key: secure.key }]);
    server.bindAsync(`${address}:${port}`, credentials, (error) => { if (error) throw error; ready(); });
  },

  // TDS 8.0 (MS-TDS): TLS first, then PRELOGIN, LOGIN7 and batches.
  tds() {
    const ucs2 = (text) => Buffer.from(text, 'utf16le');
    const reply = (socket, body) => {
      const head = Buffer.from([4, 1, 0, 0, 0, 0, 1, 0]);
      head.writeUInt16BE(head.length + body.length, 2);
      socket.write(Buffer.concat([head, body]));
    };
    const done = Buffer.from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    const loginAck = () => {
      const name = ucs2('stub');
      const rest = Buffer.concat([Buffer.from([1, 0x74, 0, 0, 4, 4]), name, Buffer.from([16, 0, 0, 0])]);
      const length = Buffer.alloc(2);
      length.writeUInt16LE(rest.length);
      return Buffer.concat([Buffer.from([0xad]), length, rest]);
    };
    const row = (text) => {
      const value = ucs2(text);
      const length = Buffer.alloc(2);
      length.writeUInt16LE(value.length);
      const column = Buffer.from([0x81, 1, 0, 0, 0, 0, 0, 9, 0, 0xe7, 0x80, 0, 9, 4, 0xd0, 0, 0x34, 1]);
      return Buffer.concat([column, ucs2('w'), Buffer.from([0xd1]), length, value]);
    };
    const prelogin = Buffer.from([0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 16, 0, 0, 0, 0, 0, 2]);
    const serve = (socket) => messages(socket, (heard) => {
      if (heard.length < 8 || heard.length < heard.readUInt16BE(2)) return 0;
      const length = heard.readUInt16BE(2);
      const [type, status] = heard;
      if (type === 0x12) reply(socket, prelogin);
      if (type === 0x10 && status & 1) reply(socket, Buffer.concat([loginAck(), done]));
      if (type === 1 && status & 1) {
        const asks = heard.subarray(8, length).toString('utf16le').includes('select who');
        reply(socket, asks ? Buffer.concat([row(socket.remoteAddress), done]) : done);
      }
      return length;
    });
    tls.createServer({ ...secure, ALPNProtocols: ['tds/8.0'] }, serve).listen(port, address, ready);
  },

  smtp() {
    const serve = (socket) => {
      let mail = false;
      socket.write('220 stub\r\n');
      messages(socket, (heard) => {
        const end = heard.indexOf('\r\n');
        if (end < 0) return 0;
        const line = heard.subarray(0, end).toString();
        if (mail && line !== '.') return end + 2;
        const done = mail;
        mail = line === 'DATA';
        socket.write(mail ? '354 go on\r\n' : done ? `250 from ${socket.remoteAddress}\r\n` : '250 yes\r\n');
        return end + 2;
      });
    };
    tls.createServer(secure, serve).listen(port, address, ready);
  },

  // The listener knows no such service, and says so (a TNS REFUSE packet); that is as far as one gets without Oracle.
  oracle() {
    const text = '(DESCRIPTION=(ERR=12514)(VSNNUM=0)(ERROR_STACK=(ERROR=(CODE=12514)(EMFI=4))))';
    const serve = (socket) => messages(socket, (heard) => {
      if (heard.length < 8 || heard.length < heard.readUInt16BE(0)) return 0;
      console.log(`asked by ${socket.remoteAddress}`);
      const refuse = Buffer.from([0, 0, 0, 0, 4, 0, 0, 0, 34, 0, 0, 0]);
      refuse.writeUInt16BE(refuse.length + text.length, 0);
      refuse.writeUInt16BE(text.length, 10);
      socket.end(Buffer.concat([refuse, Buffer.from(text)]));
      return heard.length;
    });
    require('net').createServer(serve).listen(port, address, ready);
  },

  // OP_MSG, and OP_QUERY for the first greeting.
  mongo() {
    const { BSON } = require('mongodb');
    const reply = (socket, to, operation, before, document) => {
      const body = Buffer.concat([before, BSON.serialize(document)]);
      const head = Buffer.alloc(16);
      [16 + body.length, 1, to, operation].forEach((n, at) => head.writeInt32LE(n, 4 * at));
      socket.write(Buffer.concat([head, body]));
    };
    const greeting = {
      ismaster: true, isWritablePrimary: true, helloOk: true, maxBsonObjectSize: 16777216, maxMessageSizeBytes: 48000000,
      maxWriteBatchSize: 100000, minWireVersion: 0, maxWireVersion: 21, readOnly: false, ok: 1,
    };
    const serve = (socket) => messages(socket, (heard) => {
      if (heard.length < 4 || heard.length < heard.readInt32LE(0)) return 0;
      const [length, id, operation] = [heard.readInt32LE(0), heard.readInt32LE(4), heard.readInt32LE(12)];
      const body = heard.subarray(16, length);
      if (operation === 2013) {
        const asked = BSON.deserialize(body.subarray(5, 5 + body.readInt32LE(5)));
        const greets = asked.hello || asked.ismaster || asked.isMaster;
        const answer = greets ? greeting : { ok: 1, peer: socket.remoteAddress };
        reply(socket, id, 2013, Buffer.alloc(5), answer);
      } else {
        const before = Buffer.alloc(20);
        before.writeInt32LE(8, 0);
        before.writeInt32LE(1, 16);
        reply(socket, id, 1, before, greeting);
      }
      return length;
    });
    tls.createServer(secure, serve).listen(port, address, ready);
  },
};

servers[kind]();
