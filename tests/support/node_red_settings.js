// Node-RED as a person would run it behind an edge: editor at /, HTTP nodes below /api, nothing sent anywhere.
const path = require('path')

module.exports = {
  uiHost: '127.0.0.1',
  uiPort: Number(process.env.NODE_RED_PORT),
  userDir: process.env.NODE_RED_DIR,
  flowFile: path.join(process.env.NODE_RED_DIR, 'flows.json'),
  httpNodeRoot: '/api',
  credentialSecret: false,
  telemetry: { enabled: false, updateNotification: false },
  diagnostics: { enabled: false },
  externalModules: { autoInstall: false, palette: { allowInstall: false } },
  editorTheme: { tours: false },
  logging: { console: { level: 'info', metrics: false, audit: false } }
}
