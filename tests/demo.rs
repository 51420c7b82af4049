//! The demo does what it says: its four lines, pasted, and the records that follow.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::eventually;
use support::gate::{binary, free_port};

/// Ended by its id, whatever happens.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
#[ignore = "needs curl; run by tests/run"]
fn the_four_lines_work_as_pasted_and_leave_their_records() {
    let at = || format!("127.0.0.1:{}", free_port());
    let mut process = Command::new(binary())
        .args(["demo", "--https", &at(), "--proxy", &at(), "--admin", &at()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = Arc::new(Mutex::new(Vec::<String>::new()));
    let (lines, out) = (Arc::clone(&said), process.stdout.take().unwrap());
    let mut demo = Demo(process);
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            lines.lock().unwrap().push(line);
        }
    });
    let found = |word: &str| said.lock().unwrap().iter().any(|line| line.contains(word));
    eventually("the demo runs", Duration::from_secs(20), || {
        found(r#""name":"started""#).then_some(())
    });
    let pasted: Vec<String> = {
        let lines = said.lock().unwrap();
        let curls = lines.iter().filter(|line| line.starts_with("  curl "));
        curls.cloned().collect()
    };
    assert_eq!(pasted.len(), 4, "{pasted:?}");
    let shown: Vec<String> = pasted.iter().map(|line| paste(line)).collect();
    assert!(
        shown[0].contains("x-forwarded-for") && shown[0].contains("x-request-id"),
        "{shown:?}"
    );
    assert!(
        shown[1].contains("data: event 1") && shown[1].contains("data: event 4"),
        "{shown:?}"
    );
    assert!(
        shown[2].contains(r#""you_come_from":"127.0.0.7""#),
        "{shown:?}"
    );
    assert!(shown[3].contains("destination_denied"), "{shown:?}");
    for record in [
        r#""path":"/api/hello","query":"page=tag:"#,
        r#""path":"/events""#,
        r#""door":"socks5""#,
        r#""local_address":"127.0.0.7""#,
        r#""reason":"destination_denied""#,
    ] {
        eventually(record, Duration::from_secs(5), || {
            found(record).then_some(())
        });
    }
    assert!(!found("secret\""), "a query value is shown");
    let folder = pasted[0].split('/').nth(2).unwrap().to_owned();
    kill_process(Pid::from_child(&demo.0), Signal::INT).unwrap();
    assert!(demo.0.wait().unwrap().success());
    assert!(
        !std::env::temp_dir().join(folder).exists(),
        "its folder is left behind"
    );
}

fn paste(line: &str) -> String {
    let done = Command::new("sh").args(["-c", line]).output().unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}
