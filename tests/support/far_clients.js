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

  async got() {
    return require('got')(`https://${name}:${port}/`, { https: { certificateAuthority: ca } }).text();
  },

  async axios() {
    const httpsAgent = new (require('https').Agent)({ ca });
    return (await require('axios').get(`https://${name}:${port}/`, { httpsAgent })).data;
  },

  async s3() {
    const { S3Client, GetObjectCommand } = require('@aws-sdk/client-s3');
    const client = new S3Client({
      endpoint: `https://${name}:${port}`, forcePathStyle: true, region: 'eu-central-1',
      credentials: { accessKeyId: 'id', secretAccessKey: 'key' },
    });
    return (await client.send(new GetObjectCommand({ Bucket: 'bucket', Key: 'key' }))).Body.transformToString();
  },

  async pg() {
    const client = new (require('pg').Client)({
      host: name, port: Number(port), user: 'postgres', database: 'postgres', ssl: { ca },
    });
    await client.connect();
    const { rows } = await client.query('select host(inet_client_addr()) as seen');
    await client.end();
    return rows[0].seen;
  },

  async mysql2() {
    const options = { host: name, port: Number(port), user: 'app', ssl: { ca, verifyIdentity: true } };
    const connection = await require('mysql2/promise').createConnection(options);
    const [rows] = await connection.query('select user() as who');
    await connection.end();
    return rows[0].who.split('@')[1];
  },

  async mariadb() {
    const options = { host: name, port: Number(port), user: 'app', ssl: { ca } };
    const connection = await require('mariadb').createConnection(options);
    const rows = await connection.query('select user() as who');
    await connection.end();
    return rows[0].who.split('@')[1];
  },

  async ioredis() {
    const client = new (require('ioredis'))({ host: name, port: Number(port), tls: { ca }, maxRetriesPerRequest: 1 });
    const info = await client.client('INFO');
    client.disconnect();
    return / addr=(.*?):\d+ /.exec(info)[1];
  },

  async smtp() {
    const transport = require('nodemailer').createTransport({
      host: name, port: Number(port), secure: true, tls: { ca, servername: name },
    });
    const sent = await transport.sendMail({ from: 'a@a.test', to: 'b@b.test', subject: 's', text: 't' });
    return sent.response.split(' ').pop();
  },

  // What the listener answers is all that is asked for.
  async oracle() {
    const connection = { user: 'u', password: 'p', connectString: `${name}:${port}/none` };
    const error = await require('oracledb').getConnection(connection).then(() => null, (e) => e);
    if (error?.code !== 'NJS-518') throw error ?? new Error('connected');
    return 'refused';
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
