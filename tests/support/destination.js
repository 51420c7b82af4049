// A data source inside a network namespace: tells every peer address it sees, to the peer and on standard output.
// Arguments: address, port.
const http = require('http')

http
  .createServer((request, response) => response.end(`${request.socket.remoteAddress}\n`))
  .on('connection', (socket) => console.log(`peer ${socket.remoteAddress}`))
  .listen(Number(process.argv[3]), process.argv[2], () => console.log('listening'))
