//! Node-RED behind the edge, as a person uses it: the editor page, a flow, the editor's websocket and a flow's own.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fs;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use support::client::Client;
use support::gate::{Gate, HOST, Place, free_port};
use support::log::Log;
use support::peer::{Peer, curl, must, node_modules, script};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// Node-RED with the test's flows, and Tollgate in front of it.
struct Stage {
    place: Place,
    gate: Gate,
    _node_red: Peer,
}

impl Stage {
    fn set() -> Self {
        let place = Place::new();
        let (home, port) = (place.path("node-red"), free_port());
        fs::create_dir(&home).unwrap();
        fs::copy(script("node_red_flows.json"), home.join("flows.json")).unwrap();
        let mut command = std::process::Command::new("node");
        command
            .arg(node_modules().join("node-red/red.js"))
            .arg("--settings")
            .arg(script("node_red_settings.js"))
            .env("NODE_RED_PORT", port.to_string())
            .env("NODE_RED_DIR", &home);
        let mut node_red = Peer::start(&mut command, place.path("node-red.out"));
        node_red.wait_port(port);
        node_red.wait_output("Started flows");
        let gate = place.start(&(place.head() + &place.ingress(([127, 0, 0, 1], port).into(), "")));
        Self {
            place,
            gate,
            _node_red: node_red,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{HOST}:{}{path}", self.place.https)
    }
}

#[test]
#[ignore = "needs Node-RED and curl; run by tests/run"]
fn the_editor_and_a_flow_work_over_both_versions() {
    let stage = Stage::set();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let page = must(
            curl(&stage.place)
                .args([flag, "--write-out", "\n%{http_version} %{http_code}"])
                .arg(stage.url("/")),
        );
        assert!(page.contains("<title>Node-RED</title>"), "{page}");
        assert!(page.ends_with(&format!("\n{version} 200")), "{page}");

        let said = must(
            curl(&stage.place)
                .args([flag, "--json", r#"{"greeting":"good day"}"#])
                .arg(stage.url("/api/echo")),
        );
        let said: Value = serde_json::from_str(&said).expect(&said);
        let expected = json!({ "said": { "greeting": "good day" }, "client": "127.0.0.1" });
        assert_eq!(said, expected);
    }
}

#[test]
#[ignore = "needs Node-RED and curl; run by tests/run"]
fn every_file_of_the_editor_page_arrives() {
    let stage = Stage::set();
    let page = must(curl(&stage.place).arg(stage.url("/")));
    let files: Vec<_> = page
        .split('"')
        .filter(|word| word.contains(".js?") || word.contains(".css?"))
        .collect();
    assert!(files.len() > 5, "{page}");
    for file in files {
        let path = format!("/{}", file.trim_start_matches('/'));
        let size = must(
            curl(&stage.place)
                .args([
                    "--fail",
                    "--compressed",
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{size_download}",
                ])
                .arg(stage.url(&path)),
        );
        assert_ne!(size, "0", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs Node-RED; run by tests/run"]
async fn both_websockets_speak() {
    let mut stage = Stage::set();
    let client = Client::of(&stage.place);
    let mut editor = client.websocket("/comms").await;
    let subscribe = Message::text(r#"{"subscribe":"notification/#"}"#);
    editor.send(subscribe).await.unwrap();
    let told = timeout(Duration::from_secs(10), editor.next())
        .await
        .unwrap();
    let told = told.unwrap().unwrap().into_text().unwrap();
    assert!(told.contains("notification/runtime-state"), "{told}");

    let mut flow = client.websocket("/api/ws/echo").await;
    for text in ["first", "second", &"long ".repeat(20_000)] {
        flow.send(Message::text(text)).await.unwrap();
        let back = timeout(Duration::from_secs(10), flow.next()).await.unwrap();
        assert_eq!(back.unwrap().unwrap().into_text().unwrap(), text);
    }
    editor.close(None).await.unwrap();
    flow.close(None).await.unwrap();
    drop((editor, flow));
    assert!(stage.gate.stop(Duration::from_secs(20)).success());
    let log = Log::read(&stage.place.state());
    log.assert_paired();
    let paths: Vec<_> = log
        .kind("before")
        .map(|r| r["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/comms", "/api/ws/echo"]);
    assert!(
        log.kind("after").all(|r| r["status"] == 101),
        "{:?}",
        log.records
    );
}
