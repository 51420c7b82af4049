//! An internal server that refuses what is not on record, with the middleware of `config/`, in real Node.js.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::digest;
use serde_json::Value;
use support::body::Payload;
use support::client::{Client, Version, request};
use support::gate::{Gate, HOST, Place, free_port, write};
use support::log::Log;
use support::peer::{Peer, node, node_modules};

/// Node.js with the middleware, and Tollgate in front of it.
struct Stage {
    place: Place,
    port: u16,
    _gate: Gate,
    _server: Peer,
}

impl Stage {
    /// `express`: the module, in place of plain `http`.
    fn set(express: Option<PathBuf>) -> Self {
        let (place, port) = (Place::new(), free_port());
        let key = place.path("receipt.key");
        write(&key, &format!("{}\n", "0123456789abcdef".repeat(4)));
        let mut command: Command = node("receipt_server.js");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/receipt-middleware.js"))
            .arg(&key)
            .arg(port.to_string())
            .args(express);
        let mut server = Peer::start(&mut command, place.path("server.out"));
        server.wait_port(port);
        let route = format!(
            "receipt = true\nroute = [{{ path = \"/none\", receipt = false, upstream = \"http://127.0.0.1:{port}\" }}]"
        );
        let audit = format!("[audit]\nreceipt = {{ key_file = {key:?} }}\n\n");
        let upstream = ([127, 0, 0, 1], port).into();
        let gate = place.start(&(place.head() + &audit + &place.ingress(upstream, &route)));
        Self {
            place,
            port,
            _gate: gate,
            _server: server,
        }
    }

    async fn ask(&self, version: Version, path: &str, fields: &[(&str, &str)]) -> (u16, Value) {
        let mut asked = request(version, "POST", path);
        for (name, value) in fields {
            asked = asked.header(*name, *value);
        }
        let asked = asked.body(Payload::text("x")).unwrap();
        let mut connection = Client::of(&self.place).open(version).await.unwrap();
        let reply = connection.send(asked).await.unwrap();
        (reply.status, reply.json())
    }

    /// Past the edge, as somebody inside might.
    fn directly(&self, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut head = format!("POST {path} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs Node.js; run by tests/run"]
async fn a_server_takes_only_what_is_on_record_and_only_once() {
    let stage = Stage::set(None);
    for version in [Version::H1, Version::H2] {
        // What a client brings along is gone, whatever it is called.
        let own = [
            ("Tollgate-Receipt", "v1;forged"),
            ("tollgate_receipt", "v1;forged"),
        ];
        let (status, seen) = stage.ask(version, "/a?b=c&d=%20", &own).await;
        assert_eq!(status, 200, "{seen}");
        let receipt = &seen["receipt"];
        let headers = &seen["headers"];
        assert!(headers.get("tollgate_receipt").is_none(), "{seen}");

        // It names the very line that was on disk before.
        let id = headers["x-request-id"].as_str().unwrap();
        let log = Log::read(&stage.place.state());
        let before = log.before(id);
        assert_eq!(receipt["seq"], before["seq"].to_string());
        let segment = log.records.iter().find(|r| r["name"] == "segment").unwrap();
        assert_eq!(receipt["log"], segment["facts"]["log_id"]);
        let line = line_with(&stage.place, id);
        let leaf = digest::digest(&digest::SHA256, &[&[0], line.as_bytes()].concat());
        assert_eq!(receipt["leaf"], hex(leaf.as_ref()));

        // The same once more, and anything like it, is refused.
        let field = |name: &'static str| (name, headers[name].as_str().unwrap());
        let genuine = [
            field("host"),
            field("x-request-id"),
            field("tollgate-receipt"),
        ];
        let (status, answer) = stage.directly("/a?b=c&d=%20", &genuine);
        assert!(status == 403 && answer.contains("replayed"), "{answer}");
        let (status, answer) = stage.directly("/a?b=c&d=%21", &genuine);
        assert!(status == 403 && answer.contains("forged"), "{answer}");
        let mut other = genuine;
        other[0].1 = "other.test";
        assert!(stage.directly("/a?b=c&d=%20", &other).1.contains("forged"));
        let twice = [genuine[0], genuine[1], genuine[2], genuine[2]];
        assert!(
            stage
                .directly("/a?b=c&d=%20", &twice)
                .1
                .contains("malformed")
        );
    }
    let (status, answer) = stage.directly("/a", &[("host", HOST)]);
    assert!(status == 403 && answer.contains("missing"), "{answer}");
    let old = format!(
        "v1;log={};seq=1;leaf={};time=1;mac={}",
        "0".repeat(36),
        "0".repeat(64),
        "0".repeat(64)
    );
    let (_, answer) = stage.directly("/a", &[("host", HOST), ("tollgate-receipt", &old)]);
    assert!(answer.contains("forged"), "{answer}");
    // A route without receipts.
    let (status, said) = stage.ask(Version::H1, "/none", &[]).await;
    assert_eq!(
        (status, &said["reason"]),
        (403, &"missing".into()),
        "{said}"
    );
    stage.place.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs Node.js; run by tests/run"]
async fn a_websocket_carries_a_receipt() {
    let stage = Stage::set(None);
    let client = Client::of(&stage.place);
    let asked = format!(
        "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    // The server says 403 to an upgrade without a receipt; what it makes of a 101 is not of interest here.
    let answer = client.raw(asked.as_bytes(), Duration::from_secs(20)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(!answer.starts_with("HTTP/1.1 403"), "{answer}");
    let upgrade = [
        ("host", HOST),
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
    ];
    assert_eq!(stage.directly("/ws", &upgrade).0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs Node.js and express; run by tests/run"]
async fn express_takes_the_middleware_where_it_is_mounted() {
    let stage = Stage::set(Some(node_modules().join("express")));
    let (status, seen) = stage.ask(Version::H1, "/api/x?y=z", &[]).await;
    assert_eq!(
        (status, &seen["url"]),
        (200, &"/api/x?y=z".into()),
        "{seen}"
    );
    assert!(seen["receipt"]["seq"].is_string(), "{seen}");
    let (status, answer) = stage.directly("/api/x?y=z", &[("host", HOST)]);
    assert!(status == 403 && answer.contains("missing"), "{answer}");
}

/// The line of the BEFORE record, without its line feed.
fn line_with(place: &Place, id: &str) -> String {
    let audit = place.state().join("audit");
    for entry in std::fs::read_dir(audit).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let before = format!("\"kind\":\"before\",\"id\":\"{id}\"");
        if let Some(line) = text.lines().find(|line| line.contains(&before)) {
            return line.to_owned();
        }
    }
    panic!("{id} is not in the log");
}
