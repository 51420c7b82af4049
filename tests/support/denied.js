// What the user of a data source is shown when its driver is refused: `node denied.js DRIVER PORT` prints the error's text.
const [driver, port] = [process.argv[2], Number(process.argv[3])]
const host = '127.0.0.1'
const LIMIT_MS = 30000

const drivers = {
  async pg () {
    const { Client } = require('pg')
    await new Client({ host, port, user: 'app', password: 'secret', database: 'app' }).connect()
  },
  async mysql2 () {
    await require('mysql2/promise').createConnection({ host, port, user: 'app', password: 'secret' })
  },
  async tedious () {
    const { Connection } = require('tedious')
    const authentication = { type: 'default', options: { userName: 'app', password: 'secret' } }
    const encrypt = process.argv[4] === 'encrypt'
    const options = { port, encrypt, trustServerCertificate: true, connectTimeout: 15000 }
    const connection = new Connection({ server: host, authentication, options })
    connection.on('error', () => {}) // after the first
    await new Promise((resolve, reject) => connection.connect((error) => (error ? reject(error) : resolve())))
  },
  async ioredis () {
    const Redis = require('ioredis')
    const redis = new Redis({ host, port, password: 'secret', lazyConnect: true, retryStrategy: null, maxRetriesPerRequest: 0 })
    let first
    redis.on('error', (error) => { first = first || error })
    await redis.connect().catch((error) => { throw first || error })
    await redis.get('key')
  },
  async mongodb () {
    const { MongoClient } = require('mongodb')
    await new MongoClient(`mongodb://${host}:${port}/?serverSelectionTimeoutMS=2000`).connect()
  }
}

const say = (text) => {
  console.log(text)
  process.exit(0)
}
setTimeout(() => say('it hangs'), LIMIT_MS)
drivers[driver]().then(() => say('it connects'), (error) => say(error.message))
