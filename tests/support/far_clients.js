// Drivers as an application uses them, without a word about a proxy: `node far_clients.js KIND NAME PORT CA`. Says which
// address the server saw. Certificates are checked against the name.
'use strict';
const fs = require('fs');

const [kind, name, port, caFile] = process.argv.slice(2);
const ca = fs.readFileSync(caFile);

const clients = {
  async fetch() {
    const response = await fetch(`https://${name}:${port}/`); // the authority comes by NODE_EXTRA_CA_CERTS
    return response.text();
  },

  async grpc() {
    const grpc = require('@grpc/grpc-js');
    const client = new grpc.Client(`${name}:${port}`, grpc.credentials.createSsl(ca));
    const bytes = (b) => b;
    const answer = await new Promise((resolve, reject) => {
      const done = (error, value) => (error ? reject(error) : resolve(value));
      const deadline = Date.now() + 30_000;
      client.makeUnaryRequest('/test.Who/Asks', bytes, bytes, Buffer.from('?'), new grpc.Metadata(), { deadline }, done);
    });
    client.close();
    return answer.toString().replace(/:\d+$/, '');
  },

  async tds() {
    const { Connection, Request } = require('tedious');
    const connection = new Connection({
      server: name,
      authentication: { type: 'default', options: { userName: 'u', password: 'p' } },
      options: {
        port: Number(port), encrypt: 'strict', trustServerCertificate: false, connectTimeout: 30_000,
        cryptoCredentialsDetails: { ca },
      },
    });
    await new Promise((resolve, reject) => connection.connect((error) => (error ? reject(error) : resolve())));
    const seen = await new Promise((resolve, reject) => {
      let value;
      const request = new Request('select who', (error) => (error ? reject(error) : resolve(value)));
      request.on('row', ([column]) => { value = column.value; });
      connection.execSqlBatch(request);
    });
    connection.close();
    return seen;
  },

  mongo: () => mongo(`mongodb://${name}:${port}/?directConnection=true&tls=true`),

  // Where the server is, and how to speak to it, stands in SRV and TXT records.
  'mongo-srv': () => mongo(`mongodb+srv://${name}/?tls=true`),
};

async function mongo(url) {
  const { MongoClient } = require('mongodb');
  const client = new MongoClient(url, { ca, serverSelectionTimeoutMS: 30_000 });
  try {
    return (await client.db('test').command({ whoami: 1 })).peer;
  } finally {
    await client.close();
  }
}

clients[kind]().then(
  (seen) => { console.log(seen.replace('::ffff:', '')); process.exit(0); },
  (error) => { console.error(error); process.exit(1); },
);
