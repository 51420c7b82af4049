// ToolJet's way to a data source: got, with global-agent started as ToolJet starts it. Says what became of one
// request as a line of JSON; a request that never ends is ended, and said to hang.
const HANG_MS = 20000

const { bootstrap } = require('global-agent')
bootstrap({ environmentVariableNamespace: 'TEST_' })
const got = require('got')

const begin = Date.now()
const say = (what) => {
  console.log(JSON.stringify({ ...what, ms: Date.now() - begin }))
  process.exit(0)
}
setTimeout(() => say({ hangs: true }), HANG_MS)
got(process.argv[2], { retry: 0 }).then(
  (response) => say({ status: response.statusCode, body: response.body }),
  (error) => say({ error: error.code || error.name, status: error.response && error.response.statusCode })
)
