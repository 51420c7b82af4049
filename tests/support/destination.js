// A data source inside a network namespace: says which address it saw. Arguments: address, port.
const http = require('http')

http
  .createServer((request, response) => response.end(`${request.socket.remoteAddress}\n`))
  .listen(Number(process.argv[3]), process.argv[2])
